"""What the gRPC side asks and gets: the seam between a stream and a decision.

Owns the request that a decision is made for and its three outcomes. Knows neither Envoy's
messages nor how a decision is made.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.routing.types import Decision


class RouteRequest(msgspec.Struct, frozen=True):
    """One HTTP request, complete: its body has ended."""

    method: str
    path: str
    """With its query string, as the client sent it."""
    headers: Mapping[str, str]
    """Lower-case names; only those that a decision reads (`routing-strategy`,
    `external-filter`, `x-session-id`), and none of them where clients are not trusted."""
    body: bytes
    request_id: str
    subset: frozenset[str] | None = None
    """Subset hint of the Gateway API Inference Extension: `ip:port` of each pod that may be
    chosen. None: no hint; empty: a hint that allows none."""
    end_seen: bool = True
    """False where this server will not see the end of the answer (duplex without the response's
    body or trailers): the reservation must then expire by the expected length."""
    traceparent: str | None = None
    """Of W3C Trace Context, for the record alone."""


class Picked(msgspec.Struct, frozen=True):
    """A pod was chosen; its load is reserved under `ticket`."""

    decision: Decision
    model: str
    prompt_tokens: int
    matched_tokens: int
    ticket: object
    """The ledger's: handed back to `prefill_done` and `release`, never looked into."""
    strategy: str
    is_sampled: bool = False
    """The token counts of its answer are wanted."""
    shadow: bool = False
    """Only recorded: the request goes on as if there were no pick."""


class Passed(msgspec.Struct, frozen=True):
    """The request goes on as it came, without a pick. The reason is a metric label."""

    reason: str


class Answered(msgspec.Struct, frozen=True):
    """This server answers by itself, such as GET /v1/models."""

    status: int
    body: bytes
    content_type: str


Outcome = Picked | Passed | Answered


class Decides(Protocol):
    """Makes decisions. Called on the event loop."""

    async def decide(self, request: RouteRequest) -> Outcome:
        """The outcome, within the decision's own time-out.

        Raises RequestError for what the client must be told. It may be cancelled at any await,
        when the client leaves: it must then hold no reservation.
        """
        ...

    def prefill_done(self, ticket: Any, served_by: str | None, succeeded: bool) -> None:
        """The response headers were seen: from `ip:port` where Envoy says it, and with 200."""
        ...

    def observed(self, ticket: Any, found: Usage | NoUsage) -> None:
        """The answer of a sampled request is over. Called before its release."""
        ...

    def release(self, ticket: Any) -> None:
        """The answer has ended, or will never be. Called at most once per ticket."""
        ...
