"""What is known of the candidates at the moment of the choice.

Owns the step from tokens to what a strategy reads: depths of the index, predictions, loads. It
asks the index, the predictions and the ledger, and changes none of them (but for load that is
past its time, which the ledger lets go of).
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.reuse import reusable_tokens
from aibrix_extproc.routing.types import RouteContext
from aibrix_extproc.tokenizer.types import Prefix

BYTES_PER_TOKEN: Final = 4
"""Length of a prompt whose tokens are not known: its bytes divided by this."""

DEFAULT_BLOCK_SIZE: Final = 16
"""Block size of predictions for a source that no event has told one (vLLM's own default)."""


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """The prompt's token ids, or why they are not known (None: nobody needs them)."""

    ids: "array[int] | None"
    fallback: str | None
    waited: bool = False
    """They took a call, during which pods may have come and gone."""
    prefix: Prefix | None = None
    """Where `ids` are only the prefix that is known of the prompt: what is guessed of the rest."""


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the candidates at the moment of the choice."""

    context: RouteContext
    depths: Mapping[int, int] = field(default_factory=dict)
    """Source → blocks, by the index alone."""
    block_sizes: Mapping[int, int] = field(default_factory=dict)
    keys: "Mapping[int, array[int]]" = field(default_factory=dict)
    """Block size → the prompt's block keys."""


class Viewer:
    """Looks at the candidates of a plan."""

    def __init__(
        self,
        metrics: Metrics,
        manager: SourceManager,
        index: PrefixIndex,
        ledger: Ledger,
        predictions: Predictions,
    ) -> None:
        self._metrics = metrics
        self._manager = manager
        self._index = index
        self._ledger = ledger
        self._predictions = predictions

    def view(self, plan: Plan, tokens: KnownTokens, now: float) -> View:
        """What is known at `now`, a time of the ledger's clock."""
        self._metrics.reservations_expired.inc(self._ledger.expire(now))
        loads = self._ledger.loads(now)
        if tokens.ids is None:
            length = -(-plan.parsed.prompt_bytes // BYTES_PER_TOKEN)
            return View(RouteContext(length, False, plan.candidates, {}, loads))
        ids = tokens.ids
        adapter, salt = plan.served.adapter, plan.parsed.cache_salt
        sources = [candidate.source for candidate in plan.candidates]
        depths = {
            source: depth
            for source, depth in self._index.match(
                plan.served.model, ids, lora=adapter, cache_salt=salt
            ).items()
            if self._manager.usable(source)
        }
        block_sizes = {s: self._index.block_size(s) or DEFAULT_BLOCK_SIZE for s in sources}
        keys = {
            size: self._index.block_keys(ids, size, lora=adapter, cache_salt=salt)
            for size in set(block_sizes.values())
        }
        reusable: dict[int, int] = {}
        for source, size in block_sizes.items():
            depth = self._predictions.depth(source, keys[size], now, start=depths.get(source, 0))
            if depth:
                reusable[source] = reusable_tokens(depth, size, len(ids))
        context = RouteContext(len(ids), True, plan.candidates, reusable, loads)
        if tokens.prefix is not None:
            context = _guessed(context, tokens.prefix, block_sizes)
        return View(context, depths, block_sizes, keys)


def _guessed(context: RouteContext, prefix: Prefix, block_sizes: Mapping[int, int]) -> RouteContext:
    """With the length of the whole prompt, and the answer where all of the prefix is held."""
    known = len(prefix.ids)
    likely = {
        source: prefix.answer_tokens
        for source, tokens in context.reusable_tokens.items()
        if tokens > known - 2 * block_sizes[source]
    }
    return replace(context, prompt_tokens=prefix.estimated_tokens, likely_tokens=likely)
