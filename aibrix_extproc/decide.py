"""The flow of one decision: body → prompt → tokens → depth → load → decision.

Owns the order of the steps, the deadline, and what is counted of a decision. It knows no Envoy
message, no ZMQ and no Kubernetes: it joins `extproc.openai`, the tokenizer, the index and
`routing`, and is asked by the gRPC service and by `/debug/explain` alike.
"""

import json
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from aibrix_extproc.discovery.models_page import models_page
from aibrix_extproc.discovery.pods import ServedModel
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import (
    ModelNotFound,
    NoCandidate,
    NoPodReady,
    RequestError,
    UnknownStrategy,
)
from aibrix_extproc.extproc.decides import Answered, Outcome, Passed, Picked, RouteRequest
from aibrix_extproc.extproc.openai import ParsedBody, is_completion_path, parse_body, peek_model
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger, Ticket
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.reuse import reusable_tokens
from aibrix_extproc.routing.selector import parse_selector
from aibrix_extproc.routing.strategies import STRATEGIES, build
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Scored, Strategy
from aibrix_extproc.routing.words import match_bucket
from aibrix_extproc.routing.words import selection as selection_of
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import Prefix, TokenizerPool, TokenizerUnavailable, Tokens
from aibrix_extproc.tokenizer.types import WITHOUT_A_CALL

BYTES_PER_TOKEN: Final = 4
"""Length of a prompt whose tokens are not known: its bytes divided by this."""

DEFAULT_BLOCK_SIZE: Final = 16
"""Block size of predictions for a source that no event has told one (vLLM's own default)."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a request asks for, and who may serve it."""

    parsed: ParsedBody
    served: ServedModel
    strategy: Strategy
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """The prompt's token ids, or why they are not known (None: nobody needs them)."""

    ids: "array[int] | None"
    fallback: str | None
    waited: bool = False
    """They took a call, during which pods may have come and gone."""
    prefix: Prefix | None = None
    """Where `ids` are only the prefix that is known of the prompt: what is guessed of the rest."""


@dataclass(frozen=True, slots=True)
class _View:
    """What is known of the candidates at the moment of the choice."""

    context: RouteContext
    depths: Mapping[int, int] = field(default_factory=dict)
    """Source → blocks, by the index alone."""
    block_sizes: Mapping[int, int] = field(default_factory=dict)
    keys: "Mapping[int, array[int]]" = field(default_factory=dict)
    """Block size → the prompt's block keys."""


class Decider:
    """Decides requests. Lives on the event loop; a decision waits only for the tokenizer."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        manager: SourceManager,
        index: PrefixIndex,
        tokenizer: TokenizerPool,
        ledger: Ledger,
        predictions: Predictions,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._registry = registry
        self._manager = manager
        self._index = index
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._predictions = predictions
        self._clock = clock
        rng = rng or Random()
        self._strategies = {name: build(name, settings, rng) for name in STRATEGIES}
        build(settings.routing_algorithm, settings, rng)  # raises UnknownStrategy at the start
        self._sync = "true" if settings.kv_event_sync else "false"

    async def decide(self, request: RouteRequest) -> Outcome:
        """The outcome of one request, reserved in the ledger where a candidate is picked.

        Raises RequestError where the client must be told something. The deadline runs from this
        call: over it the request is routed by load.
        """
        started = self._clock()
        if _is_models_listing(request) and self._registry.listed:
            page = json.dumps(models_page(self._registry.model_names()))
            return Answered(200, page.encode(), "application/json")
        plan = self._plan(request)
        if isinstance(plan, Passed):
            return plan
        tokens = await self._tokens(plan, started)
        plan = self._still_true(plan, tokens, request)
        view = self._view(plan, tokens)
        decision = plan.strategy.rank(view.context)
        self._count(plan, tokens, view, decision, started)
        picked = self._commit(plan, view, decision, request)
        if tokens.prefix is not None:
            self._learn_later(plan, decision)
        return picked

    def prefill_done(self, ticket: Ticket) -> None:
        """The pod has begun to answer: its prefill is no longer owed."""
        self._ledger.prefill_done(ticket, self._clock())

    def release(self, ticket: Ticket) -> None:
        """The answer is complete, or its client has gone."""
        self._ledger.release(ticket)

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """The decision that this request would get now, with everything that counted for it.

        Reserves nothing and counts nothing. Raises RequestError as `decide` does.
        """
        started = self._clock()
        plan = self._plan(request)
        if isinstance(plan, Passed):
            return {"outcome": "passed", "reason": plan.reason}
        tokens = await self._tokens(plan, started, counts=False)
        plan = self._still_true(plan, tokens, request)
        view = self._view(plan, tokens)
        decision = plan.strategy.rank(view.context)
        is_prefix = tokens.prefix is not None
        return {
            "outcome": "picked",
            "model": plan.served.model,
            "adapter": plan.served.adapter,
            "strategy": decision.strategy,
            "reason": decision.reason,
            "prompt_tokens": view.context.prompt_tokens,
            "tokens_known": "prefix" if is_prefix else view.context.tokens_known,
            "fallback": tokens.fallback,
            "candidates": [self._explain_one(scored, view) for scored in decision.ranking],
        }

    # -- who may serve it -----------------------------------------------------------------------

    def _plan(self, request: RouteRequest) -> _Plan | Passed:
        parsed = self._read(request)
        if isinstance(parsed, Passed):
            return parsed
        served = self._registry.resolve(parsed.model)
        if served is None:
            if not is_completion_path(request.path):
                return Passed("model_not_known")
            raise ModelNotFound(parsed.model)
        try:
            strategy = self._strategy(request)
            return _Plan(parsed, served, strategy, self._candidates(request, served))
        except RequestError as error:
            error.model_label = served.name
            raise

    def _strategy(self, request: RouteRequest) -> Strategy:
        """The one that the client names, else the operator's. Raises UnknownStrategy.

        A 400 is for the two paths only: on others a name that does not exist counts as none.
        """
        default = self._settings.routing_algorithm
        name = request.headers.get("routing-strategy") or default
        strategy = self._strategies.get(name)
        if strategy is not None:
            return strategy
        if is_completion_path(request.path):
            raise UnknownStrategy(name, tuple(STRATEGIES))
        return self._strategies[default]

    def _still_true(self, plan: _Plan, tokens: _Tokens, request: RouteRequest) -> _Plan:
        """The plan with the candidates of now: one that went meanwhile has no source any more."""
        if not tokens.waited:
            return plan
        try:
            return replace(plan, candidates=self._candidates(request, plan.served))
        except RequestError as error:
            error.model_label = plan.served.name
            raise

    def _read(self, request: RouteRequest) -> ParsedBody | Passed:
        if not self._registry.listed:
            return Passed("pods_not_listed")
        if is_completion_path(request.path):
            return parse_body(request.path, request.body)
        if not request.path.startswith("/v1/"):
            return Passed("other_path")
        model = peek_model(request.body)
        if model is None:
            return Passed("no_model")
        return ParsedBody(
            model=model,
            prompt=None,
            prompt_bytes=len(request.body),
            cache_salt=None,
            stream=False,
            max_tokens=None,
            report_mode=False,
        )

    def _candidates(self, request: RouteRequest, served: ServedModel) -> tuple[Candidate, ...]:
        pods = self._registry.candidates(served)
        if not pods:
            raise NoPodReady(served.name)
        label_selector = request.headers.get("external-filter")
        if label_selector:
            selector = parse_selector(label_selector)
            pods = tuple(pod for pod in pods if selector.matches(pod.labels))
            if not pods:
                raise NoCandidate(
                    "No ready pod of the model matches the header external-filter. "
                    "Widen it, or leave it out."
                )
        if request.subset is not None:
            pods = tuple(pod for pod in pods if pod.address in request.subset)
            if not pods:
                raise NoCandidate("No ready pod of the model is in the subset that Envoy allows.")
        candidates = self._manager.candidates(pods)
        if not candidates:
            raise NoPodReady(served.name)
        return candidates

    # -- what is known of them ------------------------------------------------------------------

    async def _tokens(self, plan: _Plan, started: float, counts: bool = True) -> _Tokens:
        prompt = plan.parsed.prompt
        if prompt is None or not plan.strategy.needs_tokens:
            return _Tokens(None, None)
        if not self._settings.use_remote_tokenizer:
            return _Tokens(None, "tokenizer_off")
        cached = self._tokenizer.cached(prompt)
        if cached is not None:
            return _Tokens(cached.ids, None)
        prefix = self._tokenizer.prefix(prompt, counts=counts)
        if prefix is not None:
            return _Tokens(prefix.ids, None, prefix=prefix)
        left_s = self._settings.decision_timeout_s - (self._clock() - started)
        try:
            tokens = await self._tokenizer.tokenize(prompt, _addresses(plan), left_s)
        except TokenizerUnavailable as error:
            return _Tokens(None, error.reason, waited=True)
        return _Tokens(tokens.ids, None, waited=tokens.source not in WITHOUT_A_CALL)

    def _view(self, plan: _Plan, tokens: _Tokens) -> _View:
        now = self._clock()
        self._metrics.reservations_expired.inc(self._ledger.expire(now))
        loads = self._ledger.loads(now)
        if tokens.ids is None:
            length = -(-plan.parsed.prompt_bytes // BYTES_PER_TOKEN)
            return _View(RouteContext(length, False, plan.candidates, {}, loads))
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
        return _View(context, depths, block_sizes, keys)

    # -- what follows from it -------------------------------------------------------------------

    def _commit(
        self, plan: _Plan, view: _View, decision: Decision, request: RouteRequest
    ) -> Picked:
        now = self._clock()
        chosen = decision.chosen
        source = chosen.candidate.source
        size = view.block_sizes.get(source)
        if size is not None:
            self._predict(source, view.keys[size])
        held = chosen.reusable_tokens + view.context.likely_tokens.get(source, 0)
        owed = max(0, view.context.prompt_tokens - held)
        ticket = self._ledger.reserve(source, owed, now, self._expected_s(plan, request))
        return Picked(
            decision=decision,
            model=plan.served.name,
            prompt_tokens=view.context.prompt_tokens,
            matched_tokens=chosen.reusable_tokens,
            ticket=ticket,
            strategy=decision.strategy,
        )

    def _learn_later(self, plan: _Plan, decision: Decision) -> None:
        """Tokenize what was decided by its prefix; all of it is then promised to the chosen one.

        Only then are the prompt's tokens counted, since only then their number is known.
        """
        prompt = plan.parsed.prompt
        assert prompt is not None  # noqa: S101 - it had a prefix
        chosen, name = decision.chosen, plan.served.name

        def learned(tokens: Tokens) -> None:
            self._promise(plan, chosen.candidate.source, tokens.ids)
            if self._settings.decision_metrics:
                self._metrics.prompt_tokens.labels(name).inc(len(tokens.ids))
                self._metrics.matched_tokens.labels(name).inc(chosen.reusable_tokens)

        self._tokenizer.tokenize_later(prompt, _addresses(plan), learned)

    def _promise(self, plan: _Plan, source: int, ids: "array[int]") -> None:
        try:
            size = self._index.block_size(source) or DEFAULT_BLOCK_SIZE
        except KeyError:  # its pod went meanwhile
            return
        keys = self._index.block_keys(
            ids, size, lora=plan.served.adapter, cache_salt=plan.parsed.cache_salt
        )
        self._predict(source, keys)

    def _predict(self, source: int, keys: "array[int]") -> None:
        ttl_s = (
            self._settings.prediction_ttl_s
            if self._manager.sends_events(source)
            else self._settings.prediction_ttl_no_events_s
        )
        evicted = self._predictions.promise(source, keys, ttl_s, self._clock())
        self._metrics.predictions_evicted.inc(evicted)

    def _expected_s(self, plan: _Plan, request: RouteRequest) -> float | None:
        """How long the answer should take, where its end will not be seen; else None."""
        if request.end_seen:
            return None
        settings = self._settings
        length = plan.parsed.max_tokens or settings.expected_output_tokens
        # A client may write any number, one that no float holds among them.
        most = settings.reservation_limit_s / settings.expected_token_time_s
        return min(length, most) * settings.expected_token_time_s

    def _count(
        self, plan: _Plan, tokens: _Tokens, view: _View, decision: Decision, started: float
    ) -> None:
        metrics, model = self._metrics, plan.served.name
        if tokens.fallback is not None:
            metrics.fallbacks.labels(tokens.fallback).inc()
        if plan.parsed.report_mode:
            metrics.report_mode.inc()
        if not self._settings.decision_metrics:
            return
        matched, length = decision.chosen.reusable_tokens, view.context.prompt_tokens
        selection = selection_of(decision)
        metrics.routing_decisions.labels(model, match_bucket(matched, length), self._sync).inc()
        metrics.routing_selection.labels(model, selection, self._sync, decision.strategy).inc()
        metrics.routing_latency.labels(model, self._sync).observe(self._clock() - started)
        if decision.reason == "imbalance":
            metrics.load_imbalance.labels(model, self._sync).inc()
        if view.context.tokens_known and tokens.prefix is None:
            metrics.prompt_tokens.labels(model).inc(length)
            metrics.matched_tokens.labels(model).inc(matched)

    def _explain_one(self, scored: Scored, view: _View) -> dict[str, Any]:
        candidate = scored.candidate
        source = candidate.source
        load: Load = scored.load
        return {
            "pod": candidate.pod.key,
            "address": candidate.pod.address,
            "rank": candidate.rank,
            "source": source,
            "usable": self._manager.usable(source),
            "depth": view.depths.get(source, 0),
            "block_size": view.block_sizes.get(source),
            "reusable_tokens": scored.reusable_tokens,
            "load": {
                "requests": load.requests,
                "prefill_tokens": load.prefill_tokens,
                "decoding": load.decoding,
            },
            "score": scored.score,
        }


def _guessed(context: RouteContext, prefix: Prefix, block_sizes: Mapping[int, int]) -> RouteContext:
    """With the length of the whole prompt, and the answer where all of the prefix is held."""
    known = len(prefix.ids)
    likely = {
        source: prefix.answer_tokens
        for source, tokens in context.reusable_tokens.items()
        if tokens > known - 2 * block_sizes[source]
    }
    return replace(context, prompt_tokens=prefix.estimated_tokens, likely_tokens=likely)


def _addresses(plan: _Plan) -> list[str]:
    return list(dict.fromkeys(candidate.pod.address for candidate in plan.candidates))


def _is_models_listing(request: RouteRequest) -> bool:
    return request.method == "GET" and request.path.partition("?")[0] == "/v1/models"
