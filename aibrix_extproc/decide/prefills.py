"""When the prompt of an answer that has begun is computed: by the source's events, where it can be.

Owns the answers whose head has come and whose prompt is not known to be computed. vLLM sends the
head of a streamed answer as soon as it has taken the request (its router returns a
`StreamingResponse`), which may be seconds before the prompt's turn comes; the prompt's blocks are
announced when the step that computes them is over. So a streamed answer's head says nothing of the
prompt where events can: the last of its blocks does. Knows neither load nor pace: `computed` is
told. Belongs to the event loop's thread.
"""

import logging
from array import array
from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec

from aibrix_extproc.agreement.trips import Promised, Trip
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.logs import StateLog

LOOK_EVERY_S: Final = 0.025
_LOOKS: Final = 4
"""Prompts of one source that are looked for at a time: an engine takes them in turn, so the first
is nearly always the next."""
_MAX_WAITING: Final = 1024
"""Each holds the ids of its prompt."""
_MISSING_BLOCKS: Final = 2
"""At the end of a prompt these may be missing, as `agreement.promises` has it."""
_UNSEEN: Final = 3
"""Prompts in a row whose answers ended before their blocks were seen: from then on the heads of
this source's answers count again, until blocks are seen."""


class ToldBy(StrEnum):
    """What told that a prompt is computed: labels of a metric."""

    HEAD = "head"
    """The head of its answer: not streamed, no events, or nothing to compute worth a block."""
    EVENTS = "events"
    """Its blocks."""
    LATER = "later"
    """The blocks of a prompt that came after it."""
    END = "end"
    """Only the end of its answer: the blocks were not seen."""


class _Waiting(msgspec.Struct, eq=False):
    trip: Trip
    ids: "array[int]"
    blocks: int
    """So many leading blocks of the prompt must be held."""
    is_told: bool
    """It counts as computed already: the source's events are not trusted to tell."""


class Prefills:
    """`computed(trip, succeeded)` is called once for each answer that begins and is not over before
    its prompt is known to be computed. `counts(told_by)` counts."""

    def __init__(
        self,
        index: PrefixIndex,
        manager: SourceManager,
        computed: Callable[[Trip, bool], None],
        counts: Callable[[ToldBy], None],
    ) -> None:
        self._index = index
        self._manager = manager
        self._computed = computed
        self._counts = counts
        self._waiting: dict[int, dict[int, _Waiting]] = {}
        """By source, in the order in which their heads came; then by ticket."""
        self._number = 0
        self._unseen: defaultdict[int, int] = defaultdict(int)
        self._states = StateLog(logging.getLogger(__name__), good="ok")

    @property
    def any_waiting(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._waiting)

    def began(
        self, trip: Trip, ids: "array[int] | None", promised: Promised | None, succeeded: bool
    ) -> None:
        """The head of an answer has come. `ids` and `promised`: what the trip knew until then."""
        blocks = self._blocks(trip, ids, promised, succeeded)
        if ids is None or not blocks:
            self._counts(ToldBy.HEAD)
            self._computed(trip, succeeded)
            return
        is_told = self._unseen[trip.source] >= _UNSEEN
        if is_told:
            self._counts(ToldBy.HEAD)
            self._computed(trip, succeeded)
        waiting = _Waiting(trip, ids, blocks, is_told)
        self._waiting.setdefault(trip.source, {})[trip.ticket.id] = waiting
        self._number += 1

    def ended(self, trip: Trip) -> None:
        """The answer is over, or its client has gone."""
        queue = self._waiting.get(trip.source)
        if queue is None or trip.ticket.id not in queue:
            return
        if self._holds(queue[trip.ticket.id]):
            self._seen(trip.source, trip.ticket.id)
            return
        waiting = self._leave(trip.source, trip.ticket.id)
        self._unseen[trip.source] += 1
        if self._unseen[trip.source] >= _UNSEEN:
            why = "answers ended before their blocks came, so that heads of answers count again"
            self._states.changed(f"prefills of {trip.pod.key}", "not seen", why)
        if not waiting.is_told:
            self._counts(ToldBy.END)

    def look(self) -> None:
        """Whether the first prompts of each source are computed by now."""
        for source in list(self._waiting):
            if not self._manager.usable(source):
                for ticket in list(self._waiting[source]):
                    self._tell(self._leave(source, ticket), ToldBy.HEAD)
                continue
            first = list(self._waiting[source].items())[:_LOOKS]
            for ticket, waiting in reversed(first):
                if self._holds(waiting):
                    self._seen(source, ticket)
                    break

    def _blocks(
        self, trip: Trip, ids: "array[int] | None", promised: Promised | None, succeeded: bool
    ) -> int:
        """How many blocks tell that this prompt is computed; 0 where none can, or it is not worth
        it: the head counts."""
        if ids is None or not succeeded or not trip.ticket.is_streamed or trip.not_by is not None:
            return 0
        if self._number >= _MAX_WAITING or not self._manager.usable(trip.source):
            return 0
        try:
            size = self._index.block_size(trip.source)
        except KeyError:  # gone meanwhile
            return 0
        if size is None:
            return 0
        blocks = len(ids) // size - _MISSING_BLOCKS
        held = promised.start if promised is not None else 0
        return blocks if blocks > held else 0

    def _holds(self, waiting: _Waiting) -> bool:
        trip = waiting.trip
        depths = self._index.match(
            trip.model, waiting.ids, lora=trip.adapter, cache_salt=trip.cache_salt
        )
        return depths.get(trip.source, 0) >= waiting.blocks

    def _seen(self, source: int, ticket: int) -> None:
        """The blocks of this prompt are there: those before it are computed, too."""
        if self._unseen.pop(source, 0) >= _UNSEEN:
            pod = self._waiting[source][ticket].trip.pod
            self._states.changed(f"prefills of {pod.key}", "ok")
        for earlier in list(self._waiting[source]):
            told_by = ToldBy.EVENTS if earlier == ticket else ToldBy.LATER
            self._tell(self._leave(source, earlier), told_by)
            if earlier == ticket:
                return

    def _leave(self, source: int, ticket: int) -> _Waiting:
        queue = self._waiting[source]
        waiting = queue.pop(ticket)
        self._number -= 1
        if not queue:
            del self._waiting[source]
        return waiting

    def _tell(self, waiting: _Waiting, told_by: ToldBy) -> None:
        if not waiting.is_told:
            self._counts(told_by)
            self._computed(waiting.trip, True)
