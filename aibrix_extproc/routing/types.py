"""What goes into a decision and what comes out: frozen data, no behaviour.

`decide` builds a `RouteContext`, a strategy ranks it, and the `Decision` says what and why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aibrix_extproc.discovery.pods import Pod


@dataclass(frozen=True, slots=True)
class Candidate:
    """One source, (pod, rank), that may be chosen. `source` is its number in the index."""

    source: int
    pod: Pod
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What this process's ledger says of one source."""

    requests: int = 0
    """Requests reserved and not yet released."""
    prefill_tokens: int = 0
    """Prompt tokens promised to it whose prefill is not yet seen to be done."""
    decoding: int = 0
    """Requests whose prefill is done."""


@dataclass(frozen=True, slots=True)
class RouteContext:
    """The input of a strategy. Tokens are counts; a missing source has 0 or an empty load."""

    prompt_tokens: int
    """Length of the prompt; an estimate (bytes / 4) where `tokens_known` is false."""
    tokens_known: bool
    candidates: tuple[Candidate, ...]
    """At least one."""
    reusable_tokens: Mapping[int, int]
    """Source → prompt tokens that it need not compute: index and predictions together."""
    loads: Mapping[int, Load]
    likely_tokens: Mapping[int, int] = field(default_factory=dict)
    """Source → further tokens that it holds in all likelihood, an estimate: where only a prefix
    is known, the answer to it, on a source that holds all of the prefix. They count for what a
    request costs and never as matched."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One candidate with what counted for it. A lower score is better, within one decision."""

    candidate: Candidate
    reusable_tokens: int
    load: Load
    score: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The ranking of all candidates, best first, and why the first is first."""

    strategy: str
    reason: str
    """From a closed list, a metric label: `prefix`, `load`, `imbalance`, `random`, `only`."""
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
