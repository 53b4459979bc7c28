"""What the live page looks at, in the rooms that know it. Reads, and changes nothing.

Owns the questions. How the answers are shown is the business of `rows` and of the page.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from aibrix_extproc.admin.live.rows import Seen
from aibrix_extproc.decisions import DecisionRecord, DecisionRing
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.levers import LeverBoard
from aibrix_extproc.routing.ledger import Ledger


class Sight:
    """The eyes of the page. Belongs to the event loop's thread."""

    def __init__(
        self,
        about: Mapping[str, Any],
        registry: Registry,
        manager: SourceManager,
        index: PrefixIndex,
        ledger: Ledger,
        ring: DecisionRing,
        levers: LeverBoard,
        readiness: Callable[[], Mapping[str, bool]],
    ) -> None:
        """`about`: what does not change while the process runs, as plain JSON values."""
        self.about = about
        self._registry = registry
        self._manager = manager
        self._index = index
        self._ledger = ledger
        self._ring = ring
        self._levers = levers
        self._readiness = readiness

    async def look(self) -> Seen:
        """What holds now. The index is asked on another thread: it may be busy with a batch."""
        stats = await asyncio.to_thread(self._index.stats)
        return Seen(
            views=self._manager.views(stats),
            pods={pod.key: pod for pod in self._registry.pods()},
            out=frozenset(self._registry.taken_out()),
            loads=self._ledger.booked,
            open_requests=len(self._ledger),
            notes=self._notes(),
        )

    def addresses(self) -> list[str]:
        """`ip:port` of every pod."""
        return [pod.address for pod in self._registry.pods()]

    def decisions(self, last: DecisionRecord | None) -> list[DecisionRecord]:
        """Those after `last`, the newest first."""
        return self._ring.since(last)

    def _notes(self) -> tuple[str, ...]:
        missing = sorted(name for name, holds in self._readiness().items() if not holds)
        notes = [f"not ready: {', '.join(missing).replace('_', ' ')}"] if missing else []
        if self._levers.shadow:
            notes.append("lever: shadow mode is on, no pick is told to Envoy")
        if not self._manager.following:
            notes.append("event sync is off: load and predictions decide")
        if out := self._levers.pods_out():
            notes.append(f"lever: pods taken out: {len(out)}")
        return tuple(notes)
