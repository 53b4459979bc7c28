"""Event sync on a virtual clock: the real state machine of a source, without sockets.

Owns the way of a batch from a virtual engine into the index. Knows no routing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
from aibrix_extproc.kvevents.effects import Apply, AskReplay, Clear, Effects, SourceState
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.kvevents.source import SourceSync, SyncLimits
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.engine import Batch

Replay = Callable[[int], Sequence[Batch]]
"""Batches from a number on, as the engine's replay port would send them."""


Later = Callable[[float, Callable[[], None]], None]
"""Do something at a virtual time, in seconds."""
Saved = tuple[Checkpoint, bytes]
"""How far a source was followed, and its part of the index then."""
_PIECE_S: Final = 0.1
"""A replay that takes time comes in pieces of this length."""


class VirtualSource:
    """Carries out what `SourceSync` asks for. A replay takes the time that is given, or none."""

    def __init__(
        self,
        source: int,
        index: PrefixIndex,
        settings: Settings,
        on_clear: Callable[[int], None],
        replay: Replay,
        later: Later | None = None,
        replay_batches_per_s: float = 0.0,
        *,
        has_replay: bool = True,
    ) -> None:
        """`later` is needed where a replay takes time."""
        limits = SyncLimits(
            queue_bytes=settings.kv_queue_bytes,
            idle_probe_s=settings.kv_idle_probe_s,
            stale_after_s=settings.kv_stale_after_s,
            lost_after_s=settings.kv_lost_after_s,
        )
        self.sync = SourceSync(limits, has_replay=has_replay, now=0.0)
        self._source = source
        self._index = index
        self._on_clear = on_clear
        self._replay = replay
        self._later = later
        self._replay_batches_per_s = replay_batches_per_s
        self._asked: list[tuple[int, int]] = []
        self._applied: Apply | None = None
        """The last batch of which the index holds what it left."""

    def open(self, saved: Saved | None, now: float) -> None:
        """Begin: with what the process before saved, where it saved anything."""
        if saved is not None:
            checkpoint, export = saved
            self._index.import_source(self._source, export)
            self.sync.resume(checkpoint)
        self.connect(now)

    def saved(self) -> Saved | None:
        """What a snapshot of now holds; None where nothing is applied."""
        last = self._applied
        if last is None:
            return None
        checkpoint = Checkpoint(last.sequence, digest_of(last.payload), self.sync.complete)
        return checkpoint, self._index.export_source(self._source, orphans=False)

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
            batches = self._replay(start)
            if batches and self._replay_batches_per_s and self._later is not None:
                self._answer_slowly(ask, batches, now, self._later)
                continue
            for batch in batches:
                self._carry_out(self.sync.replayed(ask, batch.sequence, batch.payload, now), now)
            self._carry_out(self.sync.replay_ended(ask, now), now)

    def _answer_slowly(self, ask: int, batches: Sequence[Batch], now: float, later: Later) -> None:
        """The first piece is read by the time that it took, and so on."""
        number = max(1, int(self._replay_batches_per_s * _PIECE_S))
        piece, rest = batches[:number], batches[number:]
        at_s = now + len(piece) / self._replay_batches_per_s

        def read() -> None:
            for batch in piece:
                self._run(self.sync.replayed(ask, batch.sequence, batch.payload, at_s), at_s)
            if rest:
                self._answer_slowly(ask, rest, at_s, later)
            else:
                self._run(self.sync.replay_ended(ask, at_s), at_s)

        later(at_s, read)

    def _carry_out(self, effects: Effects, now: float) -> None:
        """An `Apply` is the last of its effects; its result gives the next ones."""
        while effects:
            last, follows = effects[-1], effects
            effects = ()
            for effect in follows:
                match effect:
                    case Clear():
                        self._applied = None
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
        self._applied = effect
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
