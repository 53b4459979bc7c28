"""What goes into a decision and what comes out: frozen data, no behaviour.

`decide` builds a `RouteContext`, a strategy ranks it, and the `Decision` says what and why. These
are made for each request, some for each candidate: structs, because a frozen dataclass takes five
times as long to make.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.cache_use import CacheSample


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One source, (pod, rank), that may be chosen. `source` is its number in the index."""

    source: int
    pod: Pod
    rank: int = 0


class Load(msgspec.Struct, frozen=True, gc=False):
    """What this process's ledger says of one source."""

    requests: int = 0
    """Requests reserved and not yet released."""
    prefill_tokens: int = 0
    """Prompt tokens promised to it whose prefill is not yet seen to be done."""
    decoding: int = 0
    """Requests whose prefill is done."""
    context_tokens: int = 0
    """Prompt tokens of all open requests, those held before included: what their decoding reads
    at each step, and at least what they keep in the KV cache."""


class RouteContext(msgspec.Struct, frozen=True):
    """The input of a strategy. Tokens are counts; a missing source has 0 or an empty load."""

    prompt_tokens: int
    """Length of the prompt; an estimate (bytes / 4) where `tokens_known` is false."""
    tokens_known: bool
    candidates: tuple[Candidate, ...]
    """At least one."""
    reusable_tokens: Mapping[int, int]
    """Source → prompt tokens that it need not compute: index and predictions together."""
    loads: Mapping[int, Load]
    likely_tokens: Mapping[int, int] = msgspec.field(default_factory=dict)
    """Source → further tokens that it holds in all likelihood, an estimate: where only a prefix
    is known, the answer to it, on a source that holds all of the prefix. They count for what a
    request costs and never as matched."""
    computed_tokens: Mapping[int, float] = msgspec.field(default_factory=dict)
    """Source → of the prompt tokens promised to it, those that it has computed by now: an
    estimate."""
    session: str | None = None
    """The client's name of the session that the request belongs to; None: it named none."""
    caches: Mapping[int, CacheSample] = msgspec.field(default_factory=dict)
    """Source → how full its cache was, by its engine, of whatever age; only for a strategy that
    goes by it."""
    now_s: float = 0.0
    """On the ledger's clock."""


class Scored(msgspec.Struct, frozen=True, gc=False):
    """One candidate with what counted for it. A lower score is better, within one decision."""

    candidate: Candidate
    reusable_tokens: int
    load: Load
    score: float


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The ranking of all candidates, best first, and why the first is first."""

    strategy: str
    reason: str
    """From a closed list, a metric label: `words.REASONS`."""
    ranking: tuple[Scored, ...]

    @property
    def chosen(self) -> Scored:
        return self.ranking[0]


class Strategy(Protocol):
    """A rule that ranks candidates: one small file each in `routing/strategies/`."""

    name: str
    needs_tokens: bool
    """False where the prompt plays no part, so that it need not be tokenized."""

    def rank(self, context: RouteContext) -> Decision: ...
