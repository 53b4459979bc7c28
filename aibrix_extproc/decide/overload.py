"""The gate after the ranking: a request goes where it can begin in time, or is refused.

Owns the limit, who is told of it, and the account of what was sent (`routing.pace`) as far as
decisions keep it. Off, which is the default, it does nothing and costs nothing. It knows no
strategy: what stands first in a ranking is given.
"""

import logging
from collections.abc import Callable
from random import Random
from typing import Any, Final

from aibrix_extproc.agreement.trips import Served, Trip
from aibrix_extproc.errors import Overloaded
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.logs import Spells
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.admission import first_in_time, retry_after_s
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.pace import Pace
from aibrix_extproc.routing.types import Decision, Scored

_VARIABLE: Final = "AIBRIX_EXTPROC_MAX_START_DELAY"


class Gate:
    """`limit_s`: the longest wait for a beginning, 0 for none; `is_open`: an operator has switched
    it off for now; `shadow`: nobody is to be refused, since nobody follows the picks."""

    def __init__(
        self,
        limit_s: float,
        metrics: Metrics,
        ledger: Ledger,
        clock: Callable[[], float],
        rng: Random,
        shadow: Callable[[], bool],
        is_open: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit_s = limit_s
        self._metrics = metrics
        self._ledger = ledger
        self._clock = clock
        self._rng = rng
        self._shadow = shadow
        self._is_open = is_open
        self._pace = Pace()
        self._spells = Spells(logging.getLogger(__name__))

    @property
    def is_on(self) -> bool:
        """There is a limit."""
        return self._limit_s > 0

    def admit(self, decision: Decision, model: str) -> Decision:
        """The decision, or the one for another candidate that can begin in time.

        `model` is the name that the client sent. Raises Overloaded where no candidate can.
        """
        if not self.is_on:
            return decision
        self._metrics.start_delay.observe(self._delay_s(decision.chosen))
        if self._is_open():
            return decision
        found = first_in_time(decision, self._delay_s, self._limit_s)
        if isinstance(found, Decision):
            if found is not decision:
                self._metrics.overload.labels("elsewhere").inc()
            return found
        return self._refused(decision, model, found)

    def _refused(self, decision: Decision, model: str, shortest_s: float) -> Decision:
        if self._shadow():
            self._metrics.overload.labels("would_refuse").inc()
            return decision
        self._metrics.overload.labels("refused").inc()
        self._spells.seen(
            f"requests for {model} are refused",
            f"no pod could begin them within {self._limit_s:g} s ({_VARIABLE})",
        )
        raise Overloaded(model, self._limit_s, retry_after_s(shortest_s, self._limit_s, self._rng))

    def _delay_s(self, scored: Scored) -> float:
        """A candidate that has nothing to do can always begin, whatever the account says."""
        candidate = scored.candidate
        load = self._ledger.booked.get(candidate.source)
        if load is None or load.requests == 0:
            return 0.0
        return self._pace.delay_s(candidate.source, candidate.pod.model, self._clock())

    # -- the account --------------------------------------------------------------------------

    def sent(self, picked: Picked, *, is_seen: bool) -> None:
        """A request goes to the chosen candidate. `is_seen`: its answer begins when its prompt is
        computed, and this server sees it."""
        trip = picked.ticket
        if self.is_on and isinstance(trip, Trip):
            owed = trip.ticket.prefill_tokens
            model, now = trip.pod.model, self._clock()
            trip.work = self._pace.sent(trip.source, model, owed, now, is_seen=is_seen)

    def began(self, trip: Trip, succeeded: bool) -> None:
        """An answer has begun; where another pod gives it, the chosen one owes nothing."""
        work = trip.work
        if work is None:
            return
        now = self._clock()
        is_computed = (
            succeeded and trip.source == work.source and trip.served is not Served.STRANGER
        )
        if is_computed and work.is_seen:
            self._metrics.start_error.observe(work.due_s - now)
        self._pace.began(work, now, is_computed=is_computed)
        if self._pace.is_beyond_belief(work.source):
            self._spells.seen(
                "answers begin before their prompts can have been computed",
                f"{_VARIABLE} does not see how busy such pods are, and refuses nobody",
            )

    def ended(self, trip: Trip) -> None:
        """The request is over, or its client has gone."""
        if trip.work is not None:
            self._pace.ended(trip.work, self._clock())

    def forget(self, source: int) -> None:
        """The source was removed."""
        self._pace.forget(source)

    # -- pages --------------------------------------------------------------------------------

    def explained(self, decision: Decision) -> tuple[Decision, dict[str, Any]]:
        """What it would make of a decision now, and why, as plain values. Counts nothing."""
        if not self.is_on:
            return decision, {}
        is_open = self._is_open()
        found = decision if is_open else first_in_time(decision, self._delay_s, self._limit_s)
        refuses = not isinstance(found, Decision) and not self._shadow()
        page = {
            "max_start_delay_s": self._limit_s,
            "switched_off": is_open,
            "refuses": refuses,
        }
        return (found if isinstance(found, Decision) else decision), page

    def explained_one(self, scored: Scored) -> dict[str, Any]:
        """The same of one candidate."""
        if not self.is_on:
            return {}
        candidate = scored.candidate
        pace = self._pace.tokens_per_s(candidate.source, candidate.pod.model)
        return {
            "start_delay_s": round(self._delay_s(scored), 3),
            "prefill_tokens_per_s": round(pace, 1),
        }
