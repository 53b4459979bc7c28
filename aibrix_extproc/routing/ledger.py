"""Who is busy with what this process has sent: the in-flight ledger.

Owns the count of open requests, promised prefill tokens and decoding requests of each source.
It knows no candidate, no stream and no clock: `now` is seconds of any clock that does not go
back. It belongs to one thread, the event loop's. What other replicas send is not in it.
"""

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from aibrix_extproc.routing.progress import Progress
from aibrix_extproc.routing.types import Load

_SMALLEST_COMPACTION = 64


class TicketState(StrEnum):
    """Where a reservation stands: prefill → decoding → gone, or gone at any time."""

    PREFILL = "prefill"
    DECODING = "decoding"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Ticket:
    """One reservation: handed out by `Ledger.reserve`, given back to it, opaque to its holder."""

    id: int
    source: int
    prefill_tokens: int
    deadline_s: float
    """When it leaves by itself, on the clock of the ledger's caller."""
    context_tokens: int = 0
    is_streamed: bool = False
    state: TicketState = TicketState.PREFILL


class Ledger:
    """Load by source, kept up to date by each change, so that reading it costs nothing.

    A ticket that is gone (released, expired, its source forgotten) may be given in again any
    number of times: nothing happens.
    """

    def __init__(self, limit_s: float, max_open: int = 100_000) -> None:
        """`limit_s`: a reservation not released leaves after this long. `max_open`: of all."""
        self._limit_s = limit_s
        self._max_open = max_open
        self._ids = itertools.count(1)
        self._loads: dict[int, Load] = {}
        self._view: Mapping[int, Load] = MappingProxyType(self._loads)
        self._tickets: dict[int, set[Ticket]] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._open = 0
        self._progress = Progress()

    def __len__(self) -> int:
        """Open reservations."""
        return self._open

    def reserve(
        self,
        source: int,
        prefill_tokens: int,
        now: float,
        expected_s: float | None = None,
        context_tokens: int = 0,
        is_streamed: bool = False,
    ) -> Ticket:
        """Count one request: the prompt tokens that the source must compute for it, and all that
        it keeps in its KV cache meanwhile.

        `expected_s` is for a request whose end cannot be seen: it leaves after that long, or
        after the limit where that is sooner. `is_streamed`: its answer begins as soon as its
        prompt is computed. Raises ValueError for negative tokens.
        """
        if prefill_tokens < 0 or context_tokens < 0:
            raise ValueError(f"a prefill of {prefill_tokens}, a context of {context_tokens} tokens")
        lasts_s = self._limit_s if expected_s is None else min(self._limit_s, expected_s)
        ticket = Ticket(
            next(self._ids), source, prefill_tokens, now + lasts_s, context_tokens, is_streamed
        )
        self._progress.begin(source, ticket.id, prefill_tokens, now)
        self._tickets.setdefault(source, set()).add(ticket)
        self._open += 1
        self._add(source, 1, prefill_tokens, 0, context_tokens)
        heapq.heappush(self._deadlines, (ticket.deadline_s, ticket.id, ticket))
        return ticket

    def prefill_done(self, ticket: Ticket, now: float) -> None:
        """The source has read the prompt: its tokens no longer wait, the request decodes.

        Nothing happens to a ticket whose time is over by `now`: it is about to leave.
        """
        if ticket.state is TicketState.PREFILL and now < ticket.deadline_s:
            ticket.state = TicketState.DECODING
            self._progress.done(ticket.source, ticket.id, now, ticket.is_streamed)
            self._add(ticket.source, 0, -ticket.prefill_tokens, 1, 0)

    def release(self, ticket: Ticket) -> None:
        """The request is over, at whatever point it stood."""
        if ticket.state is TicketState.GONE:
            return
        self._leave(ticket)
        if len(self._deadlines) > _SMALLEST_COMPACTION + 2 * self._open:
            self._compact()

    def move(self, ticket: Ticket, source: int) -> bool:
        """Another source serves the request: its load goes there. False for one that is gone."""
        if ticket.state is TicketState.GONE:
            return False
        if ticket.source != source:
            prefilling = ticket.state is TicketState.PREFILL
            tokens = ticket.prefill_tokens if prefilling else 0
            self._take_off(ticket)
            ticket.source = source
            self._tickets.setdefault(source, set()).add(ticket)
            self._add(source, 1, tokens, 0 if prefilling else 1, ticket.context_tokens)
        return True

    def expire(self, now: float) -> int:
        """Let go of what is past its time; how many left, for the caller to count.

        Costs only what leaves. `loads` does it too, so call this first where it must be counted.
        """
        left = 0
        while self._deadlines and self._deadlines[0][0] <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.state is not TicketState.GONE:
                self._leave(ticket)
                left += 1
        return left

    def make_room(self) -> int:
        """Let go of those due to leave first until one more fits; how many, to be counted."""
        left = 0
        while self._open >= self._max_open and self._deadlines:
            ticket = heapq.heappop(self._deadlines)[2]
            if ticket.state is not TicketState.GONE:
                self._leave(ticket)
                left += 1
        return left

    def loads(self, now: float) -> Mapping[int, Load]:
        """The load of every source that has any: a read-only view, good until the next change."""
        self.expire(now)
        return self._view

    def computed(self, now: float) -> Mapping[int, float]:
        """Source → of the prompt tokens that its load counts, those that it has computed by now:
        an estimate (see `progress`). A source of which nothing is known is not in it."""
        return self._progress.computed(now)

    @property
    def booked(self) -> Mapping[int, Load]:
        """The same for who only looks on: what is past its time stays until the next decision,
        which counts it."""
        return self._view

    def forget(self, source: int) -> None:
        """The source was removed: its load is gone, and its tickets with it."""
        for ticket in self._tickets.pop(source, ()):
            ticket.state = TicketState.GONE
            self._open -= 1
        self._loads.pop(source, None)
        self._progress.forget(source)

    def _leave(self, ticket: Ticket) -> None:
        self._take_off(ticket)
        ticket.state = TicketState.GONE
        self._open -= 1

    def _take_off(self, ticket: Ticket) -> None:
        """Its source is rid of it."""
        self._progress.leave(ticket.source, ticket.id)
        prefilling = ticket.state is TicketState.PREFILL
        tickets = self._tickets[ticket.source]
        tickets.remove(ticket)
        if not tickets:
            del self._tickets[ticket.source]
            del self._loads[ticket.source]
            return
        owed = ticket.prefill_tokens if prefilling else 0
        self._add(ticket.source, -1, -owed, 0 if prefilling else -1, -ticket.context_tokens)

    def _add(
        self, source: int, requests: int, prefill_tokens: int, decoding: int, context_tokens: int
    ) -> None:
        before = self._loads.get(source)
        if before is None:
            self._loads[source] = Load(requests, prefill_tokens, decoding, context_tokens)
            return
        self._loads[source] = Load(
            before.requests + requests,
            before.prefill_tokens + prefill_tokens,
            before.decoding + decoding,
            before.context_tokens + context_tokens,
        )

    def _compact(self) -> None:
        """Drop the deadlines of tickets long gone: most requests end well before their limit."""
        self._deadlines = [d for d in self._deadlines if d[2].state is not TicketState.GONE]
        heapq.heapify(self._deadlines)
