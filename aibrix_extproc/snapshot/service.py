"""When the index is saved and taken over: the life of snapshots in one process.

Owns the order (taken over before event sync starts, saved every so often and at the end), the
counters and the log lines. Knows no layout (`format`), no socket (`peer`) and no state machine.
Everything that takes time runs in threads, a source at a time.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from aibrix_extproc import background
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.kvevents.feed import Warm
from aibrix_extproc.kvevents.manager import Followed
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.snapshot import files, peer
from aibrix_extproc.snapshot.files import SnapshotFile
from aibrix_extproc.snapshot.format import Encoder, RecordHead, Refusal, SnapshotRefused
from aibrix_extproc.snapshot.warm import ImportIndex, WarmStart

log = logging.getLogger(__name__)

PATH_VARIABLE: Final = "AIBRIX_KV_SNAPSHOT_PATH"
KEPT_S: Final = 600.0
"""What nobody has claimed by then is dropped: its pod is gone."""


class SnapshotIndex(ImportIndex, Protocol):
    """What snapshots need of the index."""

    def export_source(self, source: int, *, orphans: bool = True) -> bytes: ...


class Follows(Protocol):
    """The source manager, as far as snapshots see it."""

    saved: Callable[[Pod, Rank], Warm | None]

    def followed(self) -> Sequence[Followed]: ...


class Snapshots:
    """One process's snapshots. `open`, then `start`, then `save` as often as wanted, then `close`.

    All on one event loop.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        index: SnapshotIndex,
        manager: Follows,
        from_peer: str = "",
    ) -> None:
        """`from_peer`: URL of a replica's peers' or debug port, to be asked first. Raises
        SettingsError for a path where nothing can be written."""
        self._settings = settings
        self._metrics = metrics
        self._index = index
        self._manager = manager
        self._from_peer = from_peer
        self._path = Path(settings.kv_snapshot_path) if settings.kv_snapshot_path else None
        if self._path is not None:
            files.check_path(self._path, PATH_VARIABLE)
        self._warm: WarmStart | None = None
        self._saving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._states = StateLog(log)

    # -- taking over --------------------------------------------------------------------------

    async def open(self) -> None:
        """Find what can be taken over, for sources that are followed from now on.

        Nothing that is found stops the start. Takes as long as the replica or the disk does, the
        former at most `peer.TIMEOUT_S`.
        """
        if not self._settings.kv_event_sync:
            if self._path is not None or self._from_peer:
                log.warning("event sync is off: nothing is saved or taken over")
            return
        if self._path is not None:
            files.remove_leftovers(self._path, time.time())
        found = await self._open_peer() if self._from_peer else None
        if found is None and self._path is not None:
            found = await asyncio.to_thread(self._open_file, self._path)
        if found is not None:
            self._warm = WarmStart(
                found, self._index, self._metrics, self._settings.kv_index_max_bytes
            )
            self._manager.saved = self._warm.claim

    async def _open_peer(self) -> SnapshotFile | None:
        folder = self._path.parent if self._path is not None else None
        limit_bytes = self._settings.kv_index_max_bytes or peer.UNLIMITED_BYTES
        try:
            file = await peer.fetch(self._from_peer, folder, limit_bytes)
        except SnapshotRefused as refused:
            self._refuse("peer", self._from_peer, refused)
            return None
        return self._checked("peer", self._from_peer, file)

    def _open_file(self, path: Path) -> SnapshotFile | None:
        try:
            file = files.open_snapshot(path)
        except SnapshotRefused as refused:
            self._refuse("file", str(path), refused)
            return None
        if file is None:
            log.info("there is no snapshot at %s yet", path)
            self._metrics.snapshots_opened.labels("file", "missing").inc()
            return None
        return self._checked("file", str(path), file)

    def _checked(self, origin: str, name: str, file: SnapshotFile) -> SnapshotFile | None:
        """The file, where it is not too old. A clock that was set back makes it no older."""
        contents = file.contents
        age_s = time.time() - contents.written_at
        if not age_s <= self._settings.kv_snapshot_max_age_s:
            file.close()
            why = f"it was written {age_s:.0f} s ago"
            self._refuse(origin, name, SnapshotRefused(Refusal.OLD, why))
            return None
        self._metrics.snapshots_opened.labels(origin, "read").inc()
        log.info(
            "snapshot %s: %d sources in %d bytes, written %.0f s ago",
            name,
            len(contents.records),
            file.size_bytes,
            age_s,
        )
        return file

    def _refuse(self, origin: str, name: str, refused: SnapshotRefused) -> None:
        self._metrics.snapshots_opened.labels(origin, refused.reason).inc()
        log.warning("the snapshot %s is not used: %s", name, refused)

    # -- saving -------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on save every so often, and drop what is not claimed in time."""
        self._tasks.append(asyncio.create_task(self._drop_unclaimed()))
        if self._path is not None and self._settings.kv_snapshot_interval_s:
            self._tasks.append(asyncio.create_task(self._save_regularly()))

    async def _save_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.kv_snapshot_interval_s)
            await self.save()

    async def _drop_unclaimed(self) -> None:
        await asyncio.sleep(KEPT_S)
        self._drop()

    def _drop(self) -> None:
        if self._warm is not None and (left := self._warm.close()):
            log.info("%d sources of the snapshot belong to no pod that came", left)
        self._warm = None
        self._manager.saved = lambda pod, rank: None

    async def save(self) -> None:
        """Save now, where a path is set. A failure is counted and logged, and raises nothing."""
        if self._path is None or not self._settings.kv_event_sync:
            return
        async with self._saving:
            parts = self._parts()
            try:
                written = await asyncio.to_thread(files.write, self._path, parts)
            except (OSError, ValueError) as error:
                self._metrics.snapshot_saves.labels("failed").inc()
                self._states.changed(f"snapshot {self._path}", "not saved", str(error))
                return
        self._metrics.snapshot_saves.labels("saved").inc()
        self._metrics.snapshot_saved_at.set(time.time())
        self._metrics.snapshot_bytes.set(written)
        self._states.changed(f"snapshot {self._path}", "ok")
        log.debug("saved %d bytes to %s", written, self._path)

    async def stream(self) -> AsyncIterator[bytes]:
        """The parts of a snapshot of now, for another replica."""
        parts = self._parts()
        while part := await asyncio.to_thread(next, parts, b""):
            yield part

    def _parts(self) -> Iterator[bytes]:
        """The list of sources is taken at once, each of them when its turn comes."""
        warm = self._warm
        return self._encode(self._manager.followed(), warm.unclaimed() if warm else [])

    def _encode(
        self,
        followed: Sequence[Followed],
        unclaimed: Iterable[tuple[RecordHead, bytes]],
    ) -> Iterator[bytes]:
        encoder = Encoder(time.time(), self._settings.kv_index_max_bytes)
        yield encoder.start()
        for one in followed:
            saved = one.feed.at_checkpoint(self._export) if replays(one) else None
            if saved is not None:
                checkpoint, export = saved
                pod = one.pod
                head = RecordHead(
                    *pod.identity,
                    one.rank.rank,
                    pod.model,
                    pod.lora_id,
                    one.feed.sync.state,
                    checkpoint.sequence,
                    checkpoint.digest,
                    checkpoint.complete,
                )
                yield encoder.record(head, export)
        for head, export in unclaimed:
            yield encoder.record(head, export)
        yield encoder.end()

    def _export(self, source: int) -> bytes:
        """Without parked blocks: no token goes to the disk or to another process."""
        return self._index.export_source(source, orphans=False)

    async def close(self) -> None:
        """End the tasks, and close what was not claimed."""
        await background.end(*self._tasks)
        self._tasks.clear()
        self._drop()


def replays(one: Followed) -> bool:
    """Whether the engine can prove later that it is the same one: else saving it is of no use."""
    return one.rank.replay_endpoint is not None
