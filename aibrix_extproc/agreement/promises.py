"""Blocks promised by a request that was answered: does its source then hold them?

Pure: the time and what the index holds are passed in. A pod that has answered a prompt has
computed its blocks, and its events name them within a step; so an index that does not find the
prompt in that source a few seconds later was told of other tokens than those that were matched.
That is the direct measure of "tokens agree". Owns which requests are looked at (a bounded few),
when, and what a look means.
"""

from array import array
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FIRST_LOOK_S: Final = 0.5
"""After the answer began: an engine sends its events at the end of each step."""
DEADLINE_S: Final = 5.0
"""A block that is not there by then does not come. Long enough for a replay, short against the
time that blocks stay in a cache."""
MAX_PENDING: Final = 64
MIN_TOKENS: Final = 16
MAX_TOKENS: Final = 32_768
"""Longer prompts are not looked at: each holds its ids until it is settled."""
BURST: Final = 32
PER_S: Final = 4.0
"""A look walks one prompt through the index once or a few times: 20 µs to 2 ms each."""
MISSING_BLOCKS: Final = 2
"""At the end of a prompt these may be missing: `lookahead` of a drafting model takes one or two."""


class Kind(StrEnum):
    """What could keep the tokens apart beside the tokens: labels of a metric."""

    PLAIN = "plain"
    SALTED = "salted"
    ADAPTER = "adapter"


class Found(StrEnum):
    """What the looks at one prompt have shown: labels of a metric."""

    CONFIRMED = "confirmed"
    PARTLY = "partly"
    """Its beginning alone."""
    UNCONFIRMED = "unconfirmed"
    """Nothing, though events came."""
    SILENT = "silent"
    """Nothing, and no event came."""
    VOID = "void"
    """The source was cleared, not believed, full or gone meanwhile: it shows nothing."""


FAILED: Final = (Found.PARTLY, Found.UNCONFIRMED, Found.SILENT)


@dataclass(frozen=True, slots=True)
class Promise:
    """One prompt that a source has computed."""

    model: str
    """Of the index: the pod's label."""
    pod: str
    source: int
    ids: "array[int]"
    adapter: str | None
    cache_salt: str | None
    sequence: int | None
    """Number of the source's last batch when the prompt was sent."""

    @property
    def kind(self) -> Kind:
        if self.cache_salt is not None:
            return Kind.SALTED
        return Kind.PLAIN if self.adapter is None else Kind.ADAPTER


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to see of a promise now."""

    depth: int
    """Leading blocks of the prompt that the index finds in the source."""
    block_size: int
    """Of the source, as its events say it; else a guess."""
    is_believed: bool
    """The source is in sync, and takes new blocks."""
    sequence: int | None


@dataclass(slots=True)
class Pending:
    """A promise that waits to be settled."""

    promise: Promise
    since: float


class Promises:
    """Those under way. `dropped` may be called from any thread, the rest from one."""

    def __init__(self) -> None:
        self._pending: deque[Pending] = deque()
        self._budget = float(BURST)
        self._filled_at = float("-inf")
        self._cleared: deque[int] = deque(maxlen=4096)

    def __len__(self) -> int:
        return len(self._pending)

    def has_room(self, now: float) -> bool:
        """Whether one more may be taken now. Costs under a microsecond."""
        if len(self._pending) >= MAX_PENDING:
            return False
        if self._budget < 1:
            self._budget = min(BURST, self._budget + PER_S * max(0.0, now - self._filled_at))
            self._filled_at = now
        return self._budget >= 1

    def take(self, promise: Promise, now: float) -> bool:
        """Look at this one from now on; False where it can show nothing or there is no room."""
        if not MIN_TOKENS <= len(promise.ids) <= MAX_TOKENS or not self.has_room(now):
            return False
        if self._budget >= BURST:
            self._filled_at = now
        self._budget -= 1
        self._pending.append(Pending(promise, now))
        return True

    def dropped(self, source: int) -> None:
        """The source was emptied or removed: its promises show nothing. From any thread."""
        self._cleared.append(source)

    def due(self, now: float) -> list[Pending]:
        """Those to look at now."""
        return [one for one in self._pending if now - one.since >= FIRST_LOOK_S]

    def void(self) -> list[Pending]:
        """Those of emptied sources: they leave, as `Found.VOID`."""
        cleared = set()
        while self._cleared:
            cleared.add(self._cleared.popleft())
        gone = [one for one in self._pending if one.promise.source in cleared]
        for one in gone:
            self._pending.remove(one)
        return gone

    def settle(self, pending: Pending, look: Look, now: float) -> Found | None:
        """What is shown by now; None: not yet known, it stays."""
        found = _judge(pending, look, now)
        if found is not None:
            self._pending.remove(pending)
        return found


def _judge(pending: Pending, look: Look, now: float) -> Found | None:
    promise = pending.promise
    blocks = len(promise.ids) // look.block_size
    if not look.is_believed or not blocks:
        return Found.VOID
    if look.depth >= max(1, blocks - MISSING_BLOCKS):
        return Found.CONFIRMED
    if now - pending.since < DEADLINE_S:
        return None
    if look.depth:
        return Found.PARTLY
    if look.sequence is None or look.sequence == promise.sequence:
        return Found.SILENT
    return Found.UNCONFIRMED
