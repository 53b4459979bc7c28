"""Event sync on a virtual clock: the real state machine of a source, without sockets.

Owns the way of a batch from a virtual engine into the index. Knows no routing.
"""

from collections.abc import Callable, Mapping, Sequence

from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.effects import Apply, AskReplay, Clear, Effects, SourceState
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.kvevents.source import SourceSync, SyncLimits
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.engine import Batch

Replay = Callable[[int], Sequence[Batch]]
"""Batches from a number on, as the engine's replay port would send them."""


class VirtualSource:
    """Carries out what `SourceSync` asks for, at once: a replay takes no time."""

    def __init__(
        self,
        source: int,
        index: PrefixIndex,
        settings: Settings,
        on_clear: Callable[[int], None],
        replay: Replay,
    ) -> None:
        limits = SyncLimits(
            queue_bytes=settings.kv_queue_bytes,
            idle_probe_s=settings.kv_idle_probe_s,
            stale_after_s=settings.kv_stale_after_s,
            lost_after_s=settings.kv_lost_after_s,
        )
        self.sync = SourceSync(limits, has_replay=True, now=0.0)
        self._source = source
        self._index = index
        self._on_clear = on_clear
        self._replay = replay
        self._asked: list[tuple[int, int]] = []

    def connect(self, now: float) -> None:
        """The subscription stands."""
        self._run(self.sync.connected(now), now)

    def disconnect(self, now: float) -> None:
        """The subscription is gone. No batch of before may come any more."""
        self._run(self.sync.disconnected(now), now)

    def live(self, batch: Batch, now: float) -> None:
        """A batch has arrived."""
        self._run(self.sync.live(batch.sequence, batch.payload, now), now)

    def tick(self, now: float) -> None:
        """Time has passed: silence is probed, as in the server."""
        self._run(self.sync.tick(now), now)

    def _run(self, effects: Effects, now: float) -> None:
        self._carry_out(effects, now)
        while self._asked:
            ask, start = self._asked.pop(0)
            self._carry_out(self.sync.replay_put(ask, now), now)
            for batch in self._replay(start):
                self._carry_out(self.sync.replayed(ask, batch.sequence, batch.payload, now), now)
            self._carry_out(self.sync.replay_ended(ask, now), now)

    def _carry_out(self, effects: Effects, now: float) -> None:
        """An `Apply` is the last of its effects; its result gives the next ones."""
        while effects:
            last, follows = effects[-1], effects
            effects = ()
            for effect in follows:
                match effect:
                    case Clear():
                        self._index.clear_source(self._source)
                        self._on_clear(self._source)
                    case AskReplay(ask, start):
                        self._asked.append((ask, start))
                    case _:
                        pass  # states and notices, which the server counts and logs
            if isinstance(last, Apply):
                effects = self._apply(last, now)

    def _apply(self, effect: Apply, now: float) -> Effects:
        applied = self._index.apply(self._source, effect.payload)
        if applied.lossy or applied.skipped:
            raise RuntimeError(f"events of a virtual engine were not used: {applied}")
        return self.sync.applied(cleared=applied.cleared > 0, loss=None, now=now)


class VirtualManager(SourceManager):
    """The real book of pods and their numbers; events come from virtual sources."""

    def __init__(
        self,
        index: PrefixIndex,
        settings: Settings,
        metrics: Metrics,
        on_clear: Callable[[int], None],
        on_remove: Callable[[int], None],
    ) -> None:
        super().__init__(index, settings, metrics, on_clear, on_remove)
        self._virtual: dict[int, VirtualSource] = {}

    def follow(self, sources: Mapping[int, VirtualSource]) -> None:
        """Read these sources' events from now on. Without any, no depth is believed."""
        self._virtual.update(sources)

    def usable(self, source: int) -> bool:
        found = self._virtual.get(source)
        return found is not None and found.sync.usable

    def sends_events(self, source: int) -> bool:
        return source in self._virtual

    def state(self, source: int) -> SourceState | None:
        found = self._virtual.get(source)
        return None if found is None else found.sync.state

    def sequence(self, source: int) -> int | None:
        found = self._virtual.get(source)
        return None if found is None else found.sync.sequence
