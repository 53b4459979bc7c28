"""One request from its decision to its answer, and whether the pick was honoured.

Owns what is remembered of a decided request (its ticket is what a stream holds), the comparison of
the chosen pod with the host that Envoy says served, and the correction where they differ: the
reservation moves to the pod that serves, and so do the predicted blocks. Belongs to the event
loop's thread.
"""

import logging
from array import array
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger, Ticket
from aibrix_extproc.routing.pace import Work
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.types import Candidate

_THING: Final = "the host that served"
_UNTOLD: Final = 3
"""Good answers in a row without the attribute, before it is said that Envoy does not send it."""


class Served(StrEnum):
    """What became of a pick: labels of a metric."""

    HONOURED = "honoured"
    OTHER = "other"
    """Another known pod served: a retry, or a fallback of Envoy's."""
    STRANGER = "stranger"
    """A host served that is no known pod."""
    UNKNOWN = "unknown"
    """Envoy did not say, or nobody served."""


class Promised(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The blocks that a source was promised to hold."""

    keys: "array[int]"
    """All of the prompt."""
    start: int
    """How many of them it was thought to hold before."""
    ttl_s: float
    expiry: float


class Trip(msgspec.Struct, eq=False):
    """One decided request. The body is not kept; ids and keys go when the answer begins."""

    ticket: Ticket
    request_id: str
    name: str
    """The model as the client named it, which is a known name."""
    model: str
    """The label of its pods: the index's word."""
    pod: Pod
    """The one that serves, as far as is known: at first the chosen one."""
    source: int
    prompt_tokens: int
    matched_tokens: int
    ids: "array[int] | None" = None
    """Of the prompt, or of its known prefix; None where it was decided without."""
    is_prefix: bool = False
    adapter: str | None = None
    cache_salt: str | None = None
    promised: Promised | None = None
    sequence: int | None = None
    """Of the source's last batch when the prompt was sent."""
    tokens_known: bool = False
    is_sampled: bool = False
    """Its answer is read for the engine's own counts."""
    follow: object = None
    """Of `following`, until it is known what was held when the engine took the request."""
    scheduled: object = None
    """Of `following`: what was held then, once that is known."""
    shadow: bool = False
    """Nobody was told of the pick: what serves says nothing about it."""
    served_by: str | None = None
    served: Served = Served.UNKNOWN
    work: Work | None = None
    """Its place in the account of prefills, where there is one."""
    not_by: Pod | None = None
    """The chosen pod, where another one serves."""

    @property
    def chosen(self) -> Pod:
        """The pod that the decision chose."""
        return self.not_by or self.pod

    def forget_tokens(self) -> None:
        """The answer has begun: its tokens are of no more use here."""
        self.ids = self.promised = None


class HasCandidates(Protocol):
    """The source manager, as far as this module sees it."""

    def candidates(self, pods: Iterable[Pod]) -> tuple[Candidate, ...]: ...
    def sends_events(self, source: int) -> bool: ...


class Picks:
    """Compares picks with who served, and corrects the ledger and the predictions."""

    def __init__(
        self,
        metrics: Metrics,
        pods: Callable[[], Iterable[Pod]],
        manager: HasCandidates,
        ledger: Ledger,
        predictions: Predictions,
    ) -> None:
        """`pods`: all known ones, now."""
        self._pods = pods
        self._manager = manager
        self._ledger = ledger
        self._predictions = predictions
        self._counts = {served: metrics.picks.labels(served) for served in Served}
        self._untold = 0
        self._states = StateLog(logging.getLogger("aibrix_extproc.agreement"))

    def served(self, trip: Trip, address: str | None, succeeded: bool, now: float) -> Served:
        """The answer has begun, from `ip:port` by Envoy's word; None: it did not say."""
        trip.served_by = address
        trip.served = self._compare(trip, address, now)
        self._counts[trip.served].inc()
        if address is not None or succeeded:
            self._tell(address is not None)
        return trip.served

    def _compare(self, trip: Trip, address: str | None, now: float) -> Served:
        if address is None:
            return Served.UNKNOWN
        if address == trip.pod.address:
            return Served.HONOURED
        self._take_back(trip)
        candidate = self._candidate(address, trip)
        if candidate is None:
            self._ledger.release(trip.ticket)
            return Served.STRANGER
        self._ledger.move(trip.ticket, candidate.source)
        self._promise(trip, candidate.source, now)
        trip.not_by = trip.pod
        trip.pod, trip.source = candidate.pod, candidate.source
        return Served.OTHER

    def _candidate(self, address: str, trip: Trip) -> Candidate | None:
        """The source at an address; of several ranks the first, since only a pick names one."""
        pod = next((pod for pod in self._pods() if pod.address == address), None)
        found = self._manager.candidates((pod,)) if pod is not None else ()
        return found[0] if found else None

    def _take_back(self, trip: Trip) -> None:
        promised = trip.promised
        if promised is not None:
            unkept = promised.keys[promised.start :]
            self._predictions.withdraw(trip.source, unkept, promised.expiry)

    def _promise(self, trip: Trip, source: int, now: float) -> None:
        """Keys are of the chosen pod's block size; where the other has another, the prediction of
        a few seconds is lost and no more."""
        promised = trip.promised
        if promised is not None:
            self._predictions.promise(source, promised.keys, promised.ttl_s, now)

    def _tell(self, told: bool) -> None:
        self._untold = 0 if told else self._untold + 1
        if told:
            self._states.changed(_THING, "ok")
        elif self._untold >= _UNTOLD:
            why = (
                "Envoy does not name it, so picks that were not honoured go unseen; set "
                "response_attributes: [upstream.address] on the ext_proc filter"
            )
            self._states.changed(_THING, "not told", why, logging.INFO)
