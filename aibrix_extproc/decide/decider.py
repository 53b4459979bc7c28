"""The order of the steps of one decision, and its deadline.

Asked by the gRPC service and by `/debug/explain` alike. It waits only for the tokenizer.
"""

import asyncio
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.decide.booking import Booking
from aibrix_extproc.decide.overload import Gate
from aibrix_extproc.decide.plan import Plan, Planner
from aibrix_extproc.decide.prefills import LOOK_EVERY_S, Prefills, ToldBy
from aibrix_extproc.decide.view import KnownTokens, View, Viewer
from aibrix_extproc.decisions import DecisionRecord, DecisionRing, SampledLog, recorded
from aibrix_extproc.discovery.models_page import models_page
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.decides import Answered, Outcome, Passed, Picked, RouteRequest
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.cache_use import CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.ramp import Ramp
from aibrix_extproc.routing.types import Load, Scored
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool, TokenizerUnavailable
from aibrix_extproc.tokenizer.types import WITHOUT_A_CALL


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
        agreement: Agreement | None = None,
        shadow: Callable[[], bool] = lambda: False,
        gate_open: Callable[[], bool] = lambda: False,
        caches: CacheUse | None = None,
    ) -> None:
        """`shadow`: whether decisions are only recorded, and no header is set. `gate_open`:
        whether requests go on however busy the pods are. `caches`: what engines say of theirs.

        Raises UnknownStrategy where the operator's strategy is none.
        """
        self._settings = settings
        self._registry = registry
        self._manager = manager
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._clock = clock
        self.ring = DecisionRing()
        """The last decisions."""
        self._log = SampledLog(settings.decision_log_share, rng or Random())
        self._planner = Planner(settings, registry, manager, rng or Random())
        self._ramp = Ramp(settings.ramp_s)
        registry.subscribe(lambda before, after: self._ramp.on_pod(before, after, clock()))
        self._viewer = Viewer(
            metrics,
            manager,
            index,
            ledger,
            predictions,
            settings.max_prompt_tokens,
            caches,
            self._ramp,
        )
        self.agreement = agreement or Agreement(
            settings, metrics, registry, manager, index, ledger, predictions, clock
        )
        self._booking = Booking(
            settings, metrics, manager, index, ledger, predictions, clock, self.agreement, shadow
        )
        self.gate = Gate(
            settings.max_start_delay_s, metrics, ledger, clock, rng or Random(), shadow, gate_open
        )
        told = {told_by: metrics.prefills.labels(told_by) for told_by in ToldBy}
        self._prefills = Prefills(
            index, manager, self._computed, lambda told_by: told[told_by].inc()
        )
        self._looks_at: asyncio.TimerHandle | None = None

    async def decide(self, request: RouteRequest) -> Outcome:
        """The outcome of one request, reserved in the ledger where a candidate is picked.

        Raises RequestError where the client must be told something. The deadline runs from this
        call: over it the request is routed by load.
        """
        started = self._clock()
        if _is_models_listing(request) and self._registry.listed:
            page = json.dumps(models_page(self._registry.model_names()))
            return Answered(200, page.encode(), "application/json")
        plan = self._planner.plan(request)
        if isinstance(plan, Passed):
            return plan
        tokens = await self._tokens(plan, started)
        if tokens.waited:
            plan = self._planner.renewed(plan, request)
        view = self._viewer.view(plan, tokens, self._clock())
        decision = self.gate.admit(plan.strategy.rank(view.context), plan.served.name)
        self._booking.count(plan, tokens, view, decision, started)
        picked = self._booking.commit(plan, tokens, view, decision, request)
        # The headers of an answer that is not streamed come with its end.
        self.gate.sent(picked, is_seen=request.end_seen and plan.parsed.stream)
        self._remember(request, tokens, view, picked, started)
        if tokens.prefix is not None and plan.parsed.prompt is not None:
            learned = self._booking.learned(plan, picked)
            self._tokenizer.tokenize_later(plan.parsed.prompt, plan.addresses(), learned)
        return picked

    def _remember(
        self,
        request: RouteRequest,
        tokens: KnownTokens,
        view: View,
        picked: Picked,
        started: float,
    ) -> None:
        record = DecisionRecord(
            time.time(),
            self._clock() - started,
            request.request_id,
            request.traceparent,
            picked.model,
            picked.prompt_tokens,
            view.context.tokens_known if tokens.prefix is None else "prefix",
            tokens.fallback,
            picked.shadow,
            len(picked.decision.ranking),
            recorded(picked.decision),
        )
        self.ring.add(record)
        if self._log.is_on:
            self._log.write(record)

    def prefill_done(
        self, ticket: Trip, served_by: str | None = None, succeeded: bool = True
    ) -> None:
        """The head of an answer has come. Which pod gives it, Envoy may say. Its prefill is owed
        until it is known to be computed (`prefills`)."""
        ids, promised = ticket.ids, ticket.promised
        if ticket.shadow:
            ids = None
            ticket.forget_tokens()
        else:
            self.agreement.answered(ticket, served_by, succeeded)
        self._prefills.began(ticket, ids, promised, succeeded)
        self._look_later()

    def _computed(self, trip: Trip, succeeded: bool) -> None:
        self.gate.began(trip, succeeded)
        self._ledger.prefill_done(trip.ticket, self._clock())

    def _look_later(self) -> None:
        if self._looks_at is None and self._prefills.any_waiting:
            self._looks_at = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._looks_at = None
        try:
            self._prefills.look()
        finally:
            self._look_later()

    def observed(self, ticket: Trip, found: Usage | NoUsage) -> None:
        """The answer of a sampled request has ended, with these token counts."""
        self.agreement.observed(ticket, found)

    def release(self, ticket: Trip) -> None:
        """The answer is complete, or its client has gone."""
        self._prefills.ended(ticket)
        self.gate.ended(ticket)
        self.agreement.ended(ticket)
        self._ledger.release(ticket.ticket)

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """The decision that this request would get now, with everything that counted for it.

        Reserves nothing and counts nothing. Raises RequestError as `decide` does.
        """
        started = self._clock()
        plan = self._planner.plan(request)
        if isinstance(plan, Passed):
            return {"outcome": "passed", "reason": plan.reason}
        tokens = await self._tokens(plan, started, counts=False)
        if tokens.waited:
            plan = self._planner.renewed(plan, request)
        view = self._viewer.view(plan, tokens, self._clock())
        decision, admitted = self.gate.explained(plan.strategy.rank(view.context))
        is_prefix = tokens.prefix is not None
        return {
            "outcome": "refused" if admitted.get("refuses") else "picked",
            "model": plan.served.model,
            "adapter": plan.served.adapter,
            "strategy": decision.strategy,
            "reason": decision.reason,
            "prompt_tokens": view.context.prompt_tokens,
            "tokens_known": "prefix" if is_prefix else view.context.tokens_known,
            "fallback": tokens.fallback,
            "overload": admitted or None,
            "candidates": [self._explain_one(scored, view) for scored in decision.ranking],
        }

    async def _tokens(self, plan: Plan, started: float, counts: bool = True) -> KnownTokens:
        """The prompt's tokens, its known prefix where that is enough, or why there are none."""
        prompt = plan.parsed.prompt
        if prompt is None or not plan.strategy.needs_tokens:
            return KnownTokens(None, None)
        if not self._settings.use_remote_tokenizer:
            return KnownTokens(None, "tokenizer_off")
        cached = self._tokenizer.cached(prompt)
        if cached is not None:
            return KnownTokens(cached.ids, None)
        prefix = self._tokenizer.prefix(prompt, counts=counts)
        if prefix is not None:
            return KnownTokens(prefix.ids, None, prefix=prefix)
        left_s = self._settings.decision_timeout_s - (self._clock() - started)
        try:
            tokens = await self._tokenizer.tokenize(prompt, plan.addresses(), left_s)
        except TokenizerUnavailable as error:
            return KnownTokens(None, error.reason, waited=True)
        return KnownTokens(tokens.ids, None, waited=tokens.source not in WITHOUT_A_CALL)

    def _explain_one(self, scored: Scored, view: View) -> dict[str, Any]:
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
                "context_tokens": load.context_tokens,
                "computed_tokens": round(view.context.computed_tokens.get(source, 0.0)),
            },
            "ramp": round(self._ramp.share(candidate.pod.key, self._clock()), 3),
            "score": scored.score,
            **self.gate.explained_one(scored),
        }


def _is_models_listing(request: RouteRequest) -> bool:
    return request.method == "GET" and request.path.partition("?")[0] == "/v1/models"
