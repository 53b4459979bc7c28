"""Who looks at the live page, and what each is sent: all of it once, then what changes.

Owns the viewers, their bounded queues and the pace. Works only while somebody looks: what is seen
is read and encoded once for all of them. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import msgspec

from aibrix_extproc import background
from aibrix_extproc.admin.live.reach import Reach
from aibrix_extproc.admin.live.rows import Hits, Row, Seen, counted, difference, named, rows_of
from aibrix_extproc.admin.live.tally import HISTORY_S, Tally
from aibrix_extproc.decisions import DecisionRecord
from aibrix_extproc.decisions.record import rendered
from aibrix_extproc.metrics import Metrics

log = logging.getLogger(__name__)

TICK_S: Final = 0.4
MAX_VIEWERS: Final = 16
QUEUE_MESSAGES: Final = 16
"""Of one viewer, some 6 s: whoever has not taken the oldest by then is cut off."""
SHOWN_DECISIONS: Final = 30
"""Sent at once; of more in one tick the newest, with the number of the others."""
_CHUNK: Final = 250
"""Decisions added up, or sources looked at, before others get their turn."""
_SHARE: Final = 0.1
"""Of the time: with thousands of sources, messages come more rarely."""


class Sees(Protocol):
    """What there is to see: `sight.Sight`."""

    @property
    def about(self) -> Mapping[str, Any]: ...
    async def look(self) -> Seen: ...
    def addresses(self) -> Sequence[str]: ...
    def decisions(self, last: DecisionRecord | None) -> list[DecisionRecord]: ...


class TooManyViewers(Exception):
    """`MAX_VIEWERS` look already."""


class Viewer:
    """One who looks: messages to send to him, None when there are no more."""

    def __init__(self, cut: Callable[[], None]) -> None:
        """`cut`: end his connection, whatever it waits for."""
        self.cut = cut
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE_MESSAGES)


class Hub:
    """All viewers of one process. Belongs to the event loop's thread."""

    def __init__(self, sight: Sees, metrics: Metrics) -> None:
        self._sight = sight
        self._metrics = metrics
        self._reach = Reach(sight.addresses)
        self._viewers: list[Viewer] = []
        self._new: list[Viewer] = []
        """Those who have been sent nothing yet."""
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self._tally = Tally()
        self._rows: dict[int, Row] = {}
        self._last: DecisionRecord | None = None
        self._number = 0
        self._recent: list[dict[str, Any]] = []

    # -- viewers ------------------------------------------------------------------------------

    def join(self, cut: Callable[[], None]) -> Viewer:
        """One more looks. Raises TooManyViewers."""
        if len(self._viewers) >= MAX_VIEWERS:
            self._metrics.live_cut.labels("too_many").inc()
            raise TooManyViewers
        viewer = Viewer(cut)
        self._viewers.append(viewer)
        self._new.append(viewer)
        self._wake.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """He looks no more. Harmless when called again."""
        for group in (self._viewers, self._new):
            if viewer in group:
                group.remove(viewer)

    async def close(self) -> None:
        """Send everybody away."""
        await background.end(self._task)
        for viewer in list(self._viewers):
            self.leave(viewer)
            try:
                viewer.queue.put_nowait(None)
            except asyncio.QueueFull:
                viewer.cut()

    @property
    def viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    # -- the pace -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._viewers:  # one may have come while the last was seen off
            await self._serve()

    async def _serve(self) -> None:
        """As long as somebody looks. Nothing is kept after that."""
        self._reach.start()
        try:
            while self._viewers:
                self._wake.clear()
                began = time.monotonic()
                try:
                    await self._tick()
                except Exception:  # the page must not end with one bad moment
                    self._metrics.faults.labels("live_page").inc()
                    log.exception("the live page could not be brought up to date")
                    self._new = list(self._viewers)  # they may have missed a change
                with contextlib.suppress(TimeoutError):
                    took_s = time.monotonic() - began
                    async with asyncio.timeout(max(TICK_S, took_s / _SHARE)):
                        await self._wake.wait()
        finally:
            await self._reach.stop()
            self._forget()

    async def _tick(self) -> None:
        now = time.time()
        seen = await self._sight.look()
        records, touched = await self._take_decisions(now)
        hits = self._tally.hits(now)
        rows = await self._rows_of(seen, hits)
        before, self._rows = self._rows, rows
        changed, gone = difference(before, rows)
        figures = {
            "now": round(now, 3),
            "totals": {
                **self._tally.totals(now, hits.values()),
                "open": seen.open_requests,
                "health": counted(self._rows.values()),
            },
            "notes": seen.notes,
        }
        fresh = [self._numbered(record) for record in reversed(records[:SHOWN_DECISIONS])][::-1]
        self._recent = [*fresh, *self._recent][:SHOWN_DECISIONS]
        old = [viewer for viewer in self._viewers if viewer not in self._new]
        new, self._new = self._new, []
        if old:
            more = max(0, len(records) - SHOWN_DECISIONS)
            points = self._tally.points(touched)
            delta = {"rows": changed, "gone": gone, "points": points, "decisions": fresh}
            self._send(old, "tick", {**figures, **delta, "more": more})
        if new:
            self._send(new, "all", {**figures, **self._everything()})

    async def _rows_of(self, seen: Seen, hits: Mapping[int, Hits]) -> dict[int, Row]:
        rows: dict[int, Row] = {}
        for start in range(0, len(seen.views), _CHUNK):
            some = replace(seen, views=seen.views[start : start + _CHUNK])
            rows |= rows_of(some, hits, self._reach.answers)
            await asyncio.sleep(0)
        return rows

    async def _take_decisions(self, now: float) -> tuple[list[DecisionRecord], list[int]]:
        """Count what was decided since the last tick; the records, the newest first, and the
        seconds that they fell into."""
        records = self._sight.decisions(self._last)
        is_first, self._last = self._last is None, records[0] if records else self._last
        if is_first:  # all that is remembered
            records = [record for record in records if record.at_s > now - HISTORY_S]
        touched: set[int] = set()
        for start in range(0, len(records), _CHUNK):
            touched.update(self._tally.add(records[start : start + _CHUNK], now))
            await asyncio.sleep(0)
        self._tally.add((), now)
        return records, sorted(touched)

    def _numbered(self, record: DecisionRecord) -> dict[str, Any]:
        self._number += 1
        return {"id": self._number, **rendered(record)}

    def _everything(self) -> dict[str, Any]:
        return {
            "about": self._sight.about,
            "history_s": HISTORY_S,
            "rows": named(self._rows),
            "points": self._tally.points(),
            "decisions": self._recent,
        }

    def _send(self, viewers: Iterable[Viewer], event: str, message: Mapping[str, Any]) -> None:
        data = b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(message))
        for viewer in list(viewers):
            try:
                viewer.queue.put_nowait(data)
            except asyncio.QueueFull:
                self._metrics.live_cut.labels("slow").inc()
                self.leave(viewer)
                viewer.cut()
