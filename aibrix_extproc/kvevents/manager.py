"""Which sources there are: pods and their ranks in, numbers of the index out.

Owns the numbers, and who is followed. Knows no socket (`subscriber`) and no state machine.
Used by one thread, that of the registry; `on_clear` is called from others.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.index import IndexStats
from aibrix_extproc.kvevents.capacity import Capacity, read_capacities
from aibrix_extproc.kvevents.effects import ClearReason, SourceState
from aibrix_extproc.kvevents.feed import EventIndex, Feed, Warm
from aibrix_extproc.kvevents.recent import Recent
from aibrix_extproc.kvevents.sockets import link_options
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.types import Candidate
from aibrix_extproc.settings import Settings

logger = logging.getLogger(__name__)


class SourceIndex(EventIndex, Protocol):
    """What the manager needs of the index."""

    def add_source(
        self, model: str, lora_id: int | None = None, lora_name: str | None = None
    ) -> int: ...
    def remove_source(self, source: int) -> None: ...
    def stats(self) -> IndexStats: ...
    def block_size(self, source: int) -> int | None: ...


@dataclass(frozen=True, slots=True)
class SourceView:
    """One source, as the debug pages show it."""

    source: int
    pod: str
    """`namespace/name`."""
    rank: int
    model: str
    state: SourceState | None
    """None: it sends no events, or event sync is switched off."""
    usable: bool
    """Its depth may be believed."""
    stale: bool
    """Silent for longer than it is believed."""
    connected: bool
    """Its event port is connected now. What is held may be believed for a while without."""
    sequence: int | None
    """Number of the last batch applied."""
    lag_s: float | None
    """Between the engine's time stamp on the last live batch and its arrival."""
    placements: int
    full: bool
    """Blocks were left out since it was last cleared, because the index is full."""
    pending_bytes: int
    """Live batches that wait for a replay."""
    event_endpoint: str | None


@dataclass(frozen=True, slots=True)
class Followed:
    """A rank whose events are read, and who reads them."""

    pod: Pod
    rank: Rank
    feed: Feed


@dataclass(slots=True)
class _Tracked:
    """A pod, and the sources of its ranks."""

    pod: Pod
    sources: dict[Rank, int] = field(default_factory=dict)


class SourceManager:
    """Gives each (pod, rank) a source number, and has those that send events followed."""

    def __init__(
        self,
        index: SourceIndex,
        settings: Settings,
        metrics: Metrics,
        on_clear: Callable[[int], None],
        on_remove: Callable[[int], None] = lambda source: None,
        on_new_engine: Callable[[str], None] = lambda pod: None,
    ) -> None:
        """`on_clear(source)`: what is predicted of it is void. Called from any thread.

        `on_remove(source)`: it is gone for good. Called on the registry's thread, after
        `on_clear`.

        `on_new_engine(pod)`: the engine of `namespace/name` started anew, or may have. Called
        from any thread.

        Raises SettingsError for CURVE keys that cannot be used.
        """
        if settings.kv_event_sync:
            link_options(settings)  # bad keys are to stop the start before a port is opened
        self._index = index
        self._settings = settings
        self._metrics = metrics
        self._on_clear = on_clear
        self._on_remove = on_remove
        self._on_new_engine = on_new_engine
        self._pods: dict[str, _Tracked] = {}
        self._sweeper = ThreadPoolExecutor(1, "index-sweeper")
        self._subscriber: Subscriber | None = None
        self._switched_off = False
        self.saved: Callable[[Pod, Rank], Warm | None] = lambda pod, rank: None
        """What another process saved of a rank that is followed from now on."""

    # -- pods ---------------------------------------------------------------------------------

    def on_pod(self, before: Pod | None, after: Pod | None) -> None:
        """A pod came, changed or went: the listener of the registry.

        What stays the same cache keeps its number, whether ready or not. Another engine under
        the same name, other endpoints, or events switched on or off give a new number.
        """
        known = after or before
        if known is None:
            return
        tracked = self._pods.get(known.key)
        if tracked is not None and (after is None or not _same_cache(tracked.pod, after)):
            self._remove(tracked, list(tracked.sources))
            del self._pods[known.key]
            tracked = None
        if after is None:
            return
        if tracked is None:
            tracked = self._pods[after.key] = _Tracked(after)
        tracked.pod = after
        wanted = [self._effective(after, rank) for rank in after.ranks]
        self._remove(tracked, [rank for rank in tracked.sources if rank not in wanted])
        for rank in wanted:
            if rank not in tracked.sources:
                self._add(tracked, rank)

    def _effective(self, pod: Pod, rank: Rank) -> Rank:
        """The rank as it is followed: without endpoints where no events are read."""
        if pod.kv_events and self._settings.kv_event_sync:
            return rank
        return Rank(rank.rank)

    def _add(self, tracked: _Tracked, rank: Rank) -> None:
        pod = tracked.pod
        adapter = pod.model if pod.lora_id is not None else None
        source = self._index.add_source(pod.model, lora_id=pod.lora_id, lora_name=adapter)
        tracked.sources[rank] = source
        self._follow(pod, rank, source)

    def _remove(self, tracked: _Tracked, ranks: Iterable[Rank]) -> None:
        """The order matters: nothing may be applied to a number that the index has forgotten.

        They are no candidates from now on; the index is swept a little later.
        """
        for rank in ranks:
            source = tracked.sources.pop(rank)
            if self._subscriber is not None:
                self._subscriber.remove(source)
            self._sweeper.submit(self._sweep, source)
            self._on_clear(source)
            self._on_remove(source)

    def engine_metrics(self, pod: Pod, exposition: bytes) -> None:
        """An engine's `/metrics`: sources that hold more blocks than it has are emptied, soon."""
        tracked = self._pods.get(pod.key)
        capacities = read_capacities(exposition)
        if tracked is None or tracked.pod.identity != pod.identity or not capacities:
            return
        only = next(iter(capacities.values())) if len(capacities) == 1 else None
        followed = {
            source: capacity
            for rank, source in tracked.sources.items()
            if (capacity := capacities.get(rank.rank, only)) is not None
        }
        self._sweeper.submit(self._check_capacity, followed)

    def _check_capacity(self, followed: Mapping[int, Capacity]) -> None:
        placements = self._index.stats().per_source
        for source, capacity in followed.items():
            subscriber = self._subscriber
            if subscriber is None or source not in placements:
                continue
            try:
                block_size = self._index.block_size(source)
            except KeyError:  # it has gone meanwhile
                continue
            if capacity.holds_too_much(placements[source], block_size):
                logger.warning(
                    "source %d holds %d blocks, its engine has %d: it is emptied. Were requests "
                    "sent with kv_cache_report_mode?",
                    source,
                    placements[source],
                    capacity.blocks,
                )
                subscriber.discard(source, ClearReason.INFLATED)

    def _sweep(self, source: int) -> None:
        """Take a source out of the index, off the event loop: 1 ms for each 1,000 placements."""
        try:
            self._index.remove_source(source)
        except Exception:
            self._metrics.faults.labels("index_sweep").inc()
            logger.exception("source %d could not be taken out of the index", source)

    def _follow(self, pod: Pod, rank: Rank, source: int) -> None:
        if self._subscriber is not None and rank.event_endpoint is not None:
            self._subscriber.add(source, pod.key, rank, self.saved(pod, rank))

    # -- events -------------------------------------------------------------------------------

    def start_events(self) -> None:
        """Follow all sources that send events, those of later pods too. Once is enough."""
        if self._subscriber is not None or not self._settings.kv_event_sync:
            return
        self._subscriber = Subscriber(
            self._index, self._settings, self._metrics, self._on_clear, self._on_new_engine
        )
        for tracked in self._pods.values():
            for rank, source in tracked.sources.items():
                if self._switched_off:
                    # Promised while no events came, and so for long.
                    self._on_clear(source)
                self._follow(tracked.pod, rank, source)
        self._switched_off = False

    async def stop_events(self) -> None:
        """Follow nobody: no depth is believed from this call on, and the index is emptied.

        `start_events` begins anew, with a sync of every source.
        """
        self._switched_off = True
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is None:
            return
        subscriber.stop()
        followed = [
            source
            for tracked in self._pods.values()
            for rank, source in tracked.sources.items()
            if rank.event_endpoint is not None
        ]
        # In the sweeper's order: a source that goes from now on is taken out after this.
        await asyncio.wrap_future(self._sweeper.submit(self._end, subscriber, followed))

    def _end(self, subscriber: Subscriber, followed: Iterable[int]) -> None:
        subscriber.close()
        for source in followed:
            self._empty(source)

    async def resync(self, pod: str, rank: int) -> None:
        """Empty one source and follow it anew. It is not believed meanwhile.

        Raises KeyError where there is no such pod or rank, ValueError where it is not followed.
        """
        tracked = self._pods[pod]
        name = next((one for one in tracked.sources if one.rank == rank), None)
        if name is None:
            raise KeyError(rank)
        source, subscriber = tracked.sources[name], self._subscriber
        if subscriber is None or subscriber.feed(source) is None:
            raise ValueError(f"{pod} rank {rank} is not followed")
        subscriber.remove(source)
        await asyncio.wrap_future(self._sweeper.submit(self._empty, source))
        # Meanwhile the pod may have gone, or event sync.
        if self._subscriber is subscriber and tracked.sources.get(name) == source:
            self._follow(tracked.pod, name, source)

    def _empty(self, source: int) -> None:
        self._index.clear_source(source)
        self._metrics.source_clears.labels(ClearReason.OPERATOR).inc()
        self._on_clear(source)

    def close(self) -> None:
        """End event sync; the index keeps what it holds."""
        if self._subscriber is not None:
            self._subscriber.close()
            self._subscriber = None
        self._sweeper.shutdown()

    # -- questions ----------------------------------------------------------------------------

    def candidates(self, pods: Iterable[Pod]) -> tuple[Candidate, ...]:
        """Every rank of these pods, each with its number; unknown pods have none."""
        found = []
        for pod in pods:
            tracked = self._pods.get(pod.key)
            if tracked is not None and tracked.pod.identity == pod.identity:
                found += [Candidate(s, pod, rank.rank) for rank, s in tracked.sources.items()]
        return tuple(found)

    @property
    def following(self) -> bool:
        """Events feed the index: by the setting, unless switched off."""
        return self._settings.kv_event_sync and not self._switched_off

    def usable(self, source: int) -> bool:
        """Its depth may be believed: EXACT, PARTIAL, or SYNCING just after those."""
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        return feed is not None and feed.sync.usable

    def sends_events(self, source: int) -> bool:
        """It is followed now."""
        return self._subscriber is not None and self._subscriber.feed(source) is not None

    def state(self, source: int) -> SourceState | None:
        """Of a source that is followed; None for any other."""
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        return None if feed is None else feed.sync.state

    def sequence(self, source: int) -> int | None:
        """Number of the last batch applied of a source; None before the first."""
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        return None if feed is None else feed.sync.sequence

    def recent(self, source: int) -> Recent | None:
        """The last batches of a source that is followed, for who opens them."""
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        return feed.tap if feed is not None and isinstance(feed.tap, Recent) else None

    def synced(self) -> bool:
        """Every source that sends events has got past its first sync, or is LOST.

        While event sync is switched off there is none to wait for.
        """
        return self._switched_off or all(
            self._past_first_sync(source)
            for tracked in self._pods.values()
            for rank, source in tracked.sources.items()
            if rank.event_endpoint is not None
        )

    def _past_first_sync(self, source: int) -> bool:
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        return feed is not None and feed.sync.first_sync_done

    def followed(self) -> tuple[Followed, ...]:
        """Every rank whose events are read now."""
        found = []
        for tracked in self._pods.values():
            for rank, source in tracked.sources.items():
                feed = self._subscriber.feed(source) if self._subscriber is not None else None
                if feed is not None:
                    found.append(Followed(tracked.pod, rank, feed))
        return tuple(found)

    def views(self, stats: IndexStats | None = None) -> tuple[SourceView, ...]:
        """Every source, by pod and rank; `stats` of the index, where they are at hand."""
        stats = stats or self._index.stats()
        return tuple(
            self._view(tracked.pod, rank, source, stats)
            for _key, tracked in sorted(self._pods.items())
            for rank, source in sorted(tracked.sources.items(), key=lambda item: item[0].rank)
        )

    def _view(self, pod: Pod, rank: Rank, source: int, stats: IndexStats) -> SourceView:
        feed = self._subscriber.feed(source) if self._subscriber is not None else None
        sends = rank.event_endpoint is not None and not self._switched_off
        state = SourceState.CONNECTING if sends else None
        return SourceView(
            source=source,
            pod=pod.key,
            rank=rank.rank,
            model=pod.model,
            state=feed.sync.state if feed else state,
            usable=feed is not None and feed.sync.usable,
            stale=feed is not None and feed.sync.stale,
            connected=feed is not None and feed.sync.connected_now,
            sequence=feed.sync.sequence if feed else None,
            lag_s=feed.lag_s if feed else None,
            placements=stats.per_source.get(source, 0),
            full=source in stats.full_sources,
            pending_bytes=feed.sync.pending_bytes if feed else 0,
            event_endpoint=rank.event_endpoint,
        )


def _same_cache(before: Pod, after: Pod) -> bool:
    """Whether what was said of the one holds for the other, in the index's terms too."""
    return (
        before.identity == after.identity
        and before.model == after.model
        and before.lora_id == after.lora_id
    )
