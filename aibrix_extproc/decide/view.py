"""What is known of the candidates at the moment of the choice.

Owns the step from tokens to what a strategy reads: depths of the index, predictions, loads. It
asks the index, the predictions and the ledger, and changes none of them (but for load that is
past its time, which the ledger lets go of).
"""

import logging
from array import array
from collections.abc import Mapping
from typing import Final

import msgspec

from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.logs import Spells
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.cache_use import CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.ramp import Ramp
from aibrix_extproc.routing.reuse import reusable_tokens
from aibrix_extproc.routing.strategies.least_kv_cache import LeastKvCache
from aibrix_extproc.routing.types import RouteContext
from aibrix_extproc.tokenizer.types import Prefix

BYTES_PER_TOKEN: Final = 4
"""Length of a prompt whose tokens are not known: its bytes divided by this."""

DEFAULT_BLOCK_SIZE: Final = 16
"""Block size of predictions for a source that no event has told one (vLLM's own default)."""


class KnownTokens(msgspec.Struct, frozen=True):
    """The prompt's token ids, or why they are not known (None: nobody needs them)."""

    ids: "array[int] | None"
    fallback: str | None
    waited: bool = False
    """They took a call, during which pods may have come and gone."""
    prefix: Prefix | None = None
    """Where `ids` are only the prefix that is known of the prompt: what is guessed of the rest."""


class View(msgspec.Struct, frozen=True):
    """What is known of the candidates at the moment of the choice."""

    context: RouteContext
    depths: Mapping[int, int] = msgspec.field(default_factory=dict)
    """Source → blocks, by the index alone."""
    block_sizes: Mapping[int, int] = msgspec.field(default_factory=dict)
    keys: "Mapping[int, array[int]]" = msgspec.field(default_factory=dict)
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
        max_tokens: int,
        caches: CacheUse | None = None,
        ramp: Ramp | None = None,
    ) -> None:
        """`max_tokens`: leading tokens of a prompt that are matched. `caches`: what engines say
        of theirs, for a strategy that goes by it. `ramp`: of pods that join."""
        self._caches = caches or CacheUse()
        self._ramp = ramp or Ramp(0.0)
        self._max_tokens = max_tokens
        self._metrics = metrics
        self._manager = manager
        self._index = index
        self._ledger = ledger
        self._predictions = predictions
        self._spells = Spells(logging.getLogger(__name__))

    def view(self, plan: Plan, tokens: KnownTokens, now: float) -> View:
        """What is known at `now`, a time of the ledger's clock."""
        if expired := self._ledger.expire(now):
            self._metrics.reservations_expired.inc(expired)
            self._spells.seen(
                "reservations leave the ledger by time",
                "the end of their answers was not seen: usual in duplex; else see "
                "AIBRIX_EXTPROC_RESERVATION_LIMIT",
                logging.INFO,
                expired,
            )
        loads = self._ramp.counted(self._ledger.loads(now), plan.candidates, now)
        if tokens.ids is None:
            length = -(-plan.parsed.prompt_bytes // BYTES_PER_TOKEN)
            by_caches = plan.strategy.name == LeastKvCache.name
            return View(
                RouteContext(
                    length,
                    False,
                    plan.candidates,
                    {},
                    loads,
                    session=plan.session,
                    caches=self._caches.want(now) if by_caches else {},
                    now_s=now,
                    computed_tokens=self._ledger.computed(now),
                )
            )
        length = len(tokens.ids)
        ids = tokens.ids if length <= self._max_tokens else tokens.ids[: self._max_tokens]
        adapter, salt = plan.served.adapter, plan.parsed.cache_salt
        depths = self._depths(plan, ids)
        block_sizes: dict[int, int] = {}
        keys: dict[int, array[int]] = {}
        reusable: dict[int, int] = {}
        block_size_of, predicted = self._index.block_size, self._predictions.depth
        for candidate in plan.candidates:
            source = candidate.source
            size = block_sizes[source] = block_size_of(source) or DEFAULT_BLOCK_SIZE
            if size not in keys:
                keys[size] = self._index.block_keys(ids, size, lora=adapter, cache_salt=salt)
            depth = predicted(source, keys[size], now, depths.get(source, 0))
            if depth:
                reusable[source] = reusable_tokens(depth, size, length)
        context = RouteContext(
            length,
            True,
            plan.candidates,
            reusable,
            loads,
            computed_tokens=self._ledger.computed(now),
            session=plan.session,
        )
        if tokens.prefix is not None:
            context = _guessed(context, tokens.prefix, block_sizes)
        return View(context, depths, block_sizes, keys)

    def _depths(self, plan: Plan, ids: "array[int]") -> dict[int, int]:
        """What the index says of the sources that are believed."""
        found = self._index.match(
            plan.served.model, ids, lora=plan.served.adapter, cache_salt=plan.parsed.cache_salt
        )
        usable = self._manager.usable
        return {source: depth for source, depth in found.items() if usable(source)}


def _guessed(context: RouteContext, prefix: Prefix, block_sizes: Mapping[int, int]) -> RouteContext:
    """With the length of the whole prompt, and the answer where all of the prefix is held."""
    known = len(prefix.ids)
    likely = {
        source: prefix.answer_tokens
        for source, tokens in context.reusable_tokens.items()
        if tokens > known - 2 * block_sizes[source]
    }
    return msgspec.structs.replace(
        context, prompt_tokens=prefix.estimated_tokens, likely_tokens=likely
    )
