"""What passed of one source: a `Tap` that counts, and says what a row shows.

Owns the counters of one source and which messages are missing. It is told of everything by event
sync, with the time; it opens nothing and asks nobody. Safe from two threads: the one that reads
the source, and the one that shows it.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from aibrix_extproc.index import Applied
from aibrix_extproc.index.blocks import GPU
from aibrix_extproc.index.events import BlockStored, decode_batch
from aibrix_extproc.index.results import (
    PAYLOAD,
    UNREADABLE_CLEARED,
    UNREADABLE_EVENT,
    UNREADABLE_REMOVED,
    UNREADABLE_STORED,
)
from aibrix_extproc.kvevents.checkpoint import digest_of
from aibrix_extproc.kvevents.effects import (
    Apply,
    Clear,
    ClearReason,
    Effect,
    Notice,
    Noticed,
    SourceState,
    StaleChanged,
    StateChanged,
)
from aibrix_extproc.kvevents.tap import Tap
from aibrix_extproc.kvevents.wire import BadFrames, ReplayBatch, parse_live, parse_replay
from aibrix_extproc.watch.chains import Chains
from aibrix_extproc.watch.numbers import Numbers
from aibrix_extproc.watch.rates import Rates
from aibrix_extproc.watch.rows import Row
from aibrix_extproc.watch.words import readable

_BATCHES, _BYTES, _STORED, _REMOVED = range(4)
_MOST_NAMES: Final = 64
"""Of adapters, media and block sizes: an engine has a handful, hostile bytes have any number."""
_UNDECODABLE: Final = frozenset(
    {PAYLOAD, UNREADABLE_EVENT, UNREADABLE_STORED, UNREADABLE_REMOVED, UNREADABLE_CLEARED}
)

T = TypeVar("T")


class Tally(Tap):
    """The counters of one source. Its inputs come from event sync, rows go to whoever shows it."""

    def __init__(
        self,
        name: str,
        chains: Chains,
        wall: Callable[[float], float],
        *,
        endpoint: str | None = None,
        model: str | None = None,
    ) -> None:
        """`wall(now)`: seconds since the epoch at that time of event sync's clock."""
        self.name = name
        self.changes = 0
        """Grows whenever what is held may have changed."""
        self._chains = chains
        self._wall = wall
        self._endpoint = endpoint
        self._model = model
        self._lock = threading.Lock()
        self._rates = Rates(4)
        self._numbers = Numbers()
        self._totals: Counter[str] = Counter()
        self._undecodable: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._emptied: Counter[str] = Counter()
        self._state = SourceState.CONNECTING
        self._why = ""
        self._stale = False
        self._connected: bool | None = None
        self._restarts = 0
        self._sequence: int | None = None
        self._lag_s: float | None = None
        self._heard_at: float | None = None
        self._now = 0.0
        self._sizes: set[int] = set()
        self._media: set[str] = set()
        self._adapters: set[str] = set()

    # -- what event sync tells ----------------------------------------------------------------

    def contact(self, up: bool) -> None:
        with self._lock:
            self._connected = up

    def message(self, frames: Sequence[bytes], now: float) -> None:
        with self._lock:
            self._now = self._heard_at = now
            size_bytes = sum(map(len, frames))
            self._totals["messages"] += 1
            self._totals["bytes"] += size_bytes
            self._rates.add(_BYTES, size_bytes, now)
            try:
                batch = parse_live(frames)
            except BadFrames as error:
                self._undecodable[error.reason] += 1
                return
            self._rates.add(_BATCHES, 1, now)
            self._numbers.live(batch.sequence, digest_of(batch.payload))

    def answer(self, start: int, frames: Sequence[bytes], now: float) -> None:
        with self._lock:
            self._now = now
            try:
                reply = parse_replay(frames)
            except BadFrames as error:
                self._undecodable[error.reason] += 1
                return
            if isinstance(reply, ReplayBatch):
                self._totals["replayed"] += 1
                self._numbers.replayed(reply.sequence)
            else:
                self._numbers.replay_over()

    def effect(self, effect: Effect) -> None:
        with self._lock:
            match effect:
                case Apply(_, payload, live):
                    self._read(payload, live)
                case StateChanged(_, after, why):
                    self._state, self._why = after, why
                case StaleChanged(stale):
                    self._stale = stale
                case Noticed(Notice.RESTART):
                    self._restarts += 1
                case Clear(reason):
                    self._clear(reason)

    def applied(self, sequence: int, applied: Applied) -> None:
        with self._lock:
            self._sequence = sequence
            self.changes += 1
            self._rates.add(_STORED, applied.stored, self._now)
            self._rates.add(_REMOVED, applied.removed, self._now)
            self._totals["stored"] += applied.stored
            self._totals["removed"] += applied.removed
            self._totals["cleared"] += applied.cleared
            self._totals["parked"] += applied.parked
            for reason, count in applied.skipped.items():
                kind = self._undecodable if reason in _UNDECODABLE else self._skipped
                kind[reason] += count

    # -- what is shown ------------------------------------------------------------------------

    def row(
        self,
        now: float,
        *,
        held: int | None = None,
        orphans: int | None = None,
        waiting_bytes: int = 0,
        full: bool = False,
    ) -> Row:
        """The source at this moment; what the index alone knows is given."""
        with self._lock:
            return replace(
                self._counted(now),
                state=self._state,
                why=self._why,
                stale=self._stale,
                connected=self._connected,
                endpoint=self._endpoint,
                model=self._model,
                orphans=orphans,
                held=held,
                waiting_bytes=waiting_bytes,
                full=full,
                block_sizes=tuple(sorted(self._sizes)),
                media=tuple(sorted(self._media)),
                adapters=tuple(sorted(self._adapters)),
            )

    def _counted(self, now: float) -> Row:
        """What is counted here."""
        batches, received, stored, removed = self._rates.per_s(now)
        numbers, totals = self._numbers, self._totals
        return Row(
            name=self.name,
            state=self._state,
            first=numbers.first,
            sequence=self._sequence,
            missing=numbers.missing,
            holes=numbers.holes,
            gaps=numbers.gaps,
            refilled=numbers.refilled,
            restarts=self._restarts,
            messages=totals["messages"],
            replayed=totals["replayed"],
            bytes=totals["bytes"],
            stored=totals["stored"],
            removed=totals["removed"],
            cleared=totals["cleared"],
            emptied=dict(self._emptied),
            parked=totals["parked"],
            undecodable=dict(self._undecodable),
            skipped=dict(self._skipped),
            lag_s=self._lag_s,
            idle_s=None if self._heard_at is None else max(0.0, now - self._heard_at),
            batches_per_s=batches,
            stored_per_s=stored,
            removed_per_s=removed,
            bytes_per_s=received,
        )

    # -- parts --------------------------------------------------------------------------------

    def _clear(self, reason: ClearReason) -> None:
        self.changes += 1
        self._emptied[reason] += 1
        self._chains.clear()
        if reason is ClearReason.RESTART:
            self._numbers.other_process()

    def _read(self, payload: bytes, live: bool) -> None:
        """What the index does not tell of a batch that it is about to apply."""
        batch = decode_batch(payload)
        self._chains.note(batch.events)
        if live and batch.timestamp is not None:
            self._lag_s = max(0.0, self._wall(self._now) - batch.timestamp)
        for event in batch.events:
            if isinstance(event, BlockStored):
                _keep(self._sizes, event.block_size)
                _keep(self._media, readable(event.medium or GPU))
                if event.lora_name is not None or event.lora_id is not None:
                    _keep(self._adapters, readable(event.lora_name or f"id {event.lora_id}"))


def _keep(names: set[T], name: T) -> None:
    if len(names) < _MOST_NAMES:
        names.add(name)
