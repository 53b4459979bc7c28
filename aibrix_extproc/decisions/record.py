"""One decision as it is remembered, and its JSON.

A record is written on the path of every request, so it only takes hold of what is there already;
`rendered` does the rest when somebody asks. Knows no ring and no log.
"""

from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from aibrix_extproc.routing.types import Decision, Scored

TOP_CANDIDATES: Final = 5
"""Candidates that a record keeps, the best first: with a thousand pods all of them would be 100 kB
of each decision."""


class DecisionRecord(msgspec.Struct, frozen=True, gc=False):
    """A decision that was made. It holds no cycle, so the garbage collector need not look."""

    at_s: float
    """Unix time."""
    took_s: float
    """From the last byte of the body to the decision."""
    request_id: str
    traceparent: str | None
    model: str
    """As the client named it: a known name."""
    prompt_tokens: int
    """An estimate where `tokens_known` is not true."""
    tokens_known: bool | str
    """True, false, or `prefix`: only the beginning, from earlier turns."""
    fallback: str | None
    """Why the tokens were not known, where they were wanted."""
    shadow: bool
    """No header was set."""
    candidates: int
    """How many there were."""
    decision: Decision
    """With the first `TOP_CANDIDATES` of its ranking."""


def recorded(decision: Decision) -> Decision:
    """The decision without the candidates that a record does not keep."""
    if len(decision.ranking) <= TOP_CANDIDATES:
        return decision
    return Decision(decision.strategy, decision.reason, decision.ranking[:TOP_CANDIDATES])


def rendered(record: DecisionRecord) -> dict[str, Any]:
    """Plain JSON values, for the page and the log alike."""
    chosen = record.decision.chosen
    return {
        "time": datetime.fromtimestamp(record.at_s, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "traceparent": record.traceparent,
        "model": record.model,
        "pod": chosen.candidate.pod.key,
        "address": chosen.candidate.pod.address,
        "rank": chosen.candidate.rank,
        "strategy": record.decision.strategy,
        "reason": record.decision.reason,
        "prompt_tokens": record.prompt_tokens,
        "tokens_known": record.tokens_known,
        "reusable_tokens": chosen.reusable_tokens,
        "fallback": record.fallback,
        "shadow": record.shadow,
        "took_ms": round(record.took_s * 1000, 3),
        "candidates": record.candidates,
        "top": [_scored(scored) for scored in record.decision.ranking],
    }


def _scored(scored: Scored) -> dict[str, Any]:
    return {
        "pod": scored.candidate.pod.key,
        "rank": scored.candidate.rank,
        "score": scored.score,
        "reusable_tokens": scored.reusable_tokens,
        "load": {
            "requests": scored.load.requests,
            "prefill_tokens": scored.load.prefill_tokens,
            "decoding": scored.load.decoding,
        },
    }
