"""Requests from their decision to the moment when their engine schedules them.

Owns which requests are followed (a bounded number, chosen before anything is known of them), what
is kept of each, when it is looked at, and what came between decision and scheduling: a cause from a
closed list for each difference. What a look finds is for `admission`; counting is the caller's.

That an engine has taken a request is known when it has announced the prompt's last block, or when
the answer is over. The head of an answer does not tell: vLLM sends it before the prompt's turn.

Nothing here is on the way of a request: a decision puts down what it knows, the rest is done a
moment after the answer began. Belongs to the event loop's thread.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from aibrix_extproc.agreement.admission import Admitted, Expected, TooMuch, admitted, names_end
from aibrix_extproc.agreement.trips import Served, Trip
from aibrix_extproc.agreement.usage import Usage
from aibrix_extproc.kvevents.recent import Recent
from aibrix_extproc.routing.reuse import reusable_tokens

MAX_OPEN: Final = 128
"""Followed at one time; each keeps its prompt's ids, and its source the batches meanwhile."""
SAMPLED_MORE: Final = 32
"""Room that only requests have whose answer is read."""
SETTLE_S: Final = 0.3
"""After an answer's head, and after its end: an engine sends a step's events before its tokens,
but by another way."""
TOKENS_S: Final = 5.0
"""After the answer began: tokens that are not known by then do not come."""
MAX_AGE_S: Final = 120.0
"""After so long it is settled by what is known."""
BYTES_PER_S: Final = 8 * 1024 * 1024
"""Of batches, looked through for all requests: 1 % of a core."""


class Came(StrEnum):
    """What became of a followed request: labels of a metric."""

    KNOWN = "known"
    """It was scheduled, and what was held then is known."""
    NOT_SERVED = "not_served"
    """No answer with status 200 came: it was refused, it failed, or its client left."""
    NO_TOKENS = "no_tokens"
    """The rest of its tokens never became known."""
    UNANNOUNCED = "unannounced"
    """Its answer is over, and blocks that it should have computed were never announced: its client
    left before its turn, it failed in the stream, or events are missing."""
    UNSEEN = "unseen"
    """More batches came meanwhile than are kept or looked through."""


class Cause(StrEnum):
    """Why what was held at scheduling was not what was matched at the decision."""

    TAIL = "tail"
    """Only a prefix of the prompt was known at the decision; more of it was held."""
    ARRIVED = "arrived"
    """Blocks came meanwhile that were known to be missing."""
    EVICTED = "evicted"
    """The engine's events removed blocks meanwhile."""
    UNKEPT = "unkept"
    """Blocks promised by earlier requests were not computed by then."""
    OUT_OF_STEP = "out_of_step"
    """The source was emptied, or not believed any more."""
    OTHER_POD = "other_pod"
    """Another pod than the chosen one served."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Gap:
    """Tokens by which the two differ. Above 0: more was held at scheduling."""

    cause: Cause
    tokens: int


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One request as it was when its engine took it. Counts are tokens."""

    prompt_tokens: int
    decided_tokens: int
    """Matched at the decision."""
    matched_tokens: int
    """Held by the source that served, when it took the request."""
    gaps: tuple[Gap, ...]


class Follow(msgspec.Struct, eq=False):
    """One request under way. A struct, because it is made on the path of a request."""

    trip: Trip
    since: float
    block_size: int
    reusable: Mapping[int, int]
    """Source → tokens of the prompt that it was thought to hold, as far as was known."""
    prefix_tokens: int | None
    """Length of the prefix that was known at the decision; None: all of it was."""
    recent: Recent | None
    position: int
    """Of the first batch after the decision."""
    expiry: float | None
    """Of its own promise."""
    held: int
    """Leading blocks in the index, at the decision."""
    expected: Expected | None = None
    length: int = 0
    known_at: int = 0
    is_believed: bool = True
    answered_at: float | None = None
    succeeded: bool = False
    over_at: float | None = None
    looked_through: int = 0
    """Batches in which the prompt's last block is not."""
    usage: Usage | None = None
    """What the answer said of its tokens, where it was read."""


class HasRecent(Protocol):
    """The source manager, as far as this module sees it."""

    def recent(self, source: int) -> Recent | None: ...
    def usable(self, source: int) -> bool: ...
    def sends_events(self, source: int) -> bool: ...


class HasPromises(Protocol):
    """The predictions, as far as this module sees them."""

    def depth(self, source: int, keys: "array[int]", now: float, start: int = 0) -> int: ...
    def lasts_until(self, source: int, key: int) -> float: ...


Settled = tuple[Follow, Came, Scheduled | None]


@dataclass(slots=True)
class Budget:
    """Bytes that may be looked through, refilled with time."""

    left: float = float(BYTES_PER_S)
    filled_at: float = field(default=float("-inf"))

    def refill(self, now: float) -> None:
        since_s = max(0.0, min(1.0, now - self.filled_at))
        self.left = min(float(BYTES_PER_S), self.left + since_s * BYTES_PER_S)
        self.filled_at = now


class Following:
    """All requests that are followed."""

    def __init__(
        self,
        manager: HasRecent,
        predictions: HasPromises,
        matched: Callable[[Trip, "array[int]"], int],
        max_tokens: int,
    ) -> None:
        """`matched(trip, ids)`: leading blocks in the index, of the chosen source, now.

        `max_tokens`: leading tokens of a prompt that are matched.
        """
        self._manager = manager
        self._predictions = predictions
        self._matched = matched
        self._max_tokens = max_tokens
        self._open: dict[Follow, None] = {}
        self._budget = Budget()

    def __len__(self) -> int:
        return len(self._open)

    # -- one request --------------------------------------------------------------------------

    def begin(
        self, trip: Trip, block_size: int, held: int, reusable: Mapping[int, int], now: float
    ) -> None:
        """Follow a request that was just decided, where there is room.

        `held`: leading blocks that the index finds in the chosen source; `reusable`: tokens of
        each source, predictions included.
        """
        room = MAX_OPEN if trip.is_sampled else MAX_OPEN - SAMPLED_MORE
        if trip.ids is None or len(self._open) >= room or self._budget.left <= 0:
            return
        recent = self._manager.recent(trip.source)
        follow = trip.follow = Follow(
            trip=trip,
            since=now,
            block_size=block_size,
            reusable=reusable,
            prefix_tokens=len(trip.ids) if trip.is_prefix else None,
            recent=recent,
            position=recent.open() if recent is not None else 0,
            expiry=trip.promised.expiry if trip.promised is not None else None,
            held=held,
        )
        self._open[follow] = None

    def learned(
        self, trip: Trip, ids: "array[int]", keys: "array[int]", block_size: int, now: float
    ) -> None:
        """The tokens of a prompt that was decided by its prefix; nothing is promised of the rest.

        `keys` are those of `ids`, in blocks of the chosen source.
        """
        follow = trip.follow
        if not isinstance(follow, Follow) or follow not in self._open:
            return
        source = trip.source
        follow.length = len(ids)
        ids = ids if len(ids) <= self._max_tokens else ids[: self._max_tokens]
        follow.block_size = block_size
        is_usable = self._manager.usable(source)
        follow.is_believed = is_usable or not self._manager.sends_events(source)
        held = self._matched(trip, ids) if is_usable else 0
        promised = self._promised(follow, source, keys, now, held)
        if follow.recent is not None:  # after the match: what came before it may be in it
            follow.known_at = follow.recent.position - follow.position
        follow.expected = Expected(
            ids, block_size, held, promised, trip.matched_tokens // block_size, trip.adapter
        )

    def _promised(
        self, follow: Follow, source: int, keys: "array[int]", now: float, held: int
    ) -> int:
        """Leading blocks with those promised by requests that were sent earlier.

        A promise made later than this request's own, or by it, lasts longer. It may be one that
        renews an earlier one, so what counted at the decision still does.
        """
        alive = self._predictions.depth(source, keys, now, held)
        if alive <= held:
            return held
        last = self._predictions.lasts_until(source, keys[alive - 1])
        if follow.expiry is None or last < follow.expiry:
            return alive
        return max(held, min(alive, follow.trip.matched_tokens // follow.block_size))

    def answered(self, trip: Trip, succeeded: bool, now: float) -> None:
        """The answer has begun, with status 200 or not. The trip still has its tokens."""
        follow = trip.follow
        if not isinstance(follow, Follow):
            return
        follow.answered_at, follow.succeeded = now, succeeded
        if follow.prefix_tokens is None and trip.ids is not None:
            follow.length, ids = len(trip.ids), trip.ids
            ids = ids if follow.length <= self._max_tokens else ids[: self._max_tokens]
            promised = trip.matched_tokens // follow.block_size
            held = min(follow.held, promised)
            follow.expected = Expected(
                ids, follow.block_size, held, promised, promised, trip.adapter
            )

    @staticmethod
    def ended(trip: Trip, now: float) -> None:
        """The answer is over, or will never be."""
        if isinstance(trip.follow, Follow):
            trip.follow.over_at = now

    def observed(self, trip: Trip, found: Usage) -> bool:
        """Keep what the answer said until the request is settled; False where it is by now."""
        follow = trip.follow
        if not isinstance(follow, Follow) or follow not in self._open:
            return False
        follow.usage = found
        return True

    # -- looks --------------------------------------------------------------------------------

    def settle(self, now: float) -> Iterator[Settled]:
        """Those of which all is known by now, or never will be."""
        self._budget.refill(now)
        for follow in list(self._open):
            came = self._came(follow, now)
            if came is None:
                continue
            scheduled = None
            if came is Came.KNOWN:
                scheduled = self._look(follow)
                came = Came.UNSEEN if scheduled is None else came
            self._forget(follow)
            follow.trip.scheduled = scheduled
            yield follow, came, scheduled

    def _came(self, follow: Follow, now: float) -> Came | None:
        """None: not yet."""
        is_old = now - follow.since > MAX_AGE_S
        if follow.answered_at is None:
            return Came.NOT_SERVED if follow.over_at is not None or is_old else None
        if not follow.succeeded or follow.trip.served is Served.STRANGER:
            return Came.NOT_SERVED
        if follow.expected is None:
            return Came.NO_TOKENS if now - follow.answered_at >= TOKENS_S else None
        if now - follow.answered_at < SETTLE_S:
            return None
        if follow.recent is None or follow.trip.served is Served.OTHER:
            return Came.KNOWN  # of its events nothing is kept
        is_announced = self._is_announced(follow, follow.recent, follow.expected)
        if is_announced is None:
            return Came.UNSEEN
        is_over = follow.over_at is not None and now - follow.over_at >= SETTLE_S
        if is_announced or not (is_over or is_old):
            return Came.KNOWN if is_announced else None
        computes = reusable_tokens(follow.length, 1, follow.length) // follow.block_size
        return Came.KNOWN if follow.expected.promised >= computes else Came.UNANNOUNCED

    def _is_announced(self, follow: Follow, recent: Recent, expected: Expected) -> bool | None:
        """Whether batches name the prompt's last block; None: some of them are no longer kept."""
        payloads = recent.since(follow.position)
        if payloads is None:
            return None
        fresh = payloads[follow.looked_through :]
        self._budget.left -= sum(len(one) for one in fresh if one)
        if names_end(expected, fresh):
            return True
        follow.looked_through = len(payloads)
        return False

    def _forget(self, follow: Follow) -> None:
        del self._open[follow]
        follow.trip.follow = None
        if follow.recent is not None:
            follow.recent.close()

    def _look(self, follow: Follow) -> Scheduled | None:
        trip, expected = follow.trip, follow.expected
        assert expected is not None  # noqa: S101 - asked by `_came`
        if trip.served is Served.OTHER:
            # Of that source no batches were kept; what was known of it at the decision counts.
            matched = follow.reusable.get(trip.source, 0)
            gaps = _gap(Cause.OTHER_POD, matched - trip.matched_tokens)
            return Scheduled(follow.length, trip.matched_tokens, matched, gaps)
        payloads = follow.recent.since(follow.position) if follow.recent is not None else []
        if payloads is None:
            return None
        self._budget.left -= sum(len(one) for one in payloads if one)
        try:
            seen = admitted(expected, payloads, follow.known_at)
        except TooMuch:
            return None
        matched = reusable_tokens(seen.depth, expected.block_size, follow.length)
        gaps = tuple(_gaps(follow, expected, seen, matched))
        return Scheduled(follow.length, trip.matched_tokens, matched, gaps)


def _gap(cause: Cause, tokens: int) -> tuple[Gap, ...]:
    return (Gap(cause, tokens),) if tokens else ()


def _gaps(follow: Follow, expected: Expected, seen: Admitted, matched: int) -> Iterator[Gap]:
    """Why `matched` tokens are not those of the decision."""
    decided = follow.trip.matched_tokens
    if seen.emptied or not follow.is_believed:
        yield from _gap(Cause.OUT_OF_STEP, matched - decided)
    elif matched >= decided:
        known = follow.length if follow.prefix_tokens is None else follow.prefix_tokens
        inside = reusable_tokens(matched, 1, known) // expected.block_size * expected.block_size
        yield from _gap(Cause.ARRIVED, max(0, inside - decided))
        yield from _gap(Cause.TAIL, matched - max(inside, decided))
    else:
        yield from _gap(_why_less(follow, expected, seen), matched - decided)


def _why_less(follow: Follow, expected: Expected, seen: Admitted) -> Cause:
    if seen.evicted:
        return Cause.EVICTED
    promised = reusable_tokens(expected.promised, expected.block_size, follow.length)
    if promised < follow.trip.matched_tokens or expected.promised > expected.held:
        # By the time of a look at the tokens the predictions were less, or did not come true.
        return Cause.UNKEPT
    return Cause.UNKNOWN
