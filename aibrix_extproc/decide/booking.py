"""What follows from a decision: load reserved, blocks promised, all of it counted.

Owns what is written after the choice. How the choice was made is not its business.
"""

import logging
from array import array
from collections.abc import Callable

from aibrix_extproc.agreement.trips import Promised, Trip
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.decide.basis import basis
from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.decide.shortfalls import Shortfalls
from aibrix_extproc.decide.view import DEFAULT_BLOCK_SIZE, KnownTokens, View
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.logs import Spells
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger, Ticket
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.types import Candidate, Decision
from aibrix_extproc.routing.words import match_bucket
from aibrix_extproc.routing.words import selection as selection_of
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.types import Tokens


class Booking:
    """Books decisions. `clock` is that of the ledger, `shadow` whether nobody is to be told."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        manager: SourceManager,
        index: PrefixIndex,
        ledger: Ledger,
        predictions: Predictions,
        clock: Callable[[], float],
        agreement: Agreement,
        shadow: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._manager = manager
        self._index = index
        self._ledger = ledger
        self._predictions = predictions
        self._clock = clock
        self._agreement = agreement
        self._shadow = shadow
        self._spells = Spells(logging.getLogger(__name__))
        self._shortfalls = Shortfalls(metrics)
        self._sync = "true" if settings.kv_event_sync else "false"
        self._bases = metrics.children(metrics.decision_basis)
        self._decisions = metrics.children(metrics.routing_decisions)
        self._selections = metrics.children(metrics.routing_selection)
        self._latencies = metrics.children(metrics.routing_latency)
        self._prompt_tokens = metrics.children(metrics.prompt_tokens)
        self._matched_tokens = metrics.children(metrics.matched_tokens)

    def commit(
        self,
        plan: Plan,
        tokens: KnownTokens,
        view: View,
        decision: Decision,
        request: RouteRequest,
    ) -> Picked:
        """Reserve the load, and promise the prompt's blocks to the chosen source.

        In shadow mode too, so that the next decision is the one that would follow.
        """
        now = self._clock()
        chosen = decision.chosen
        source = chosen.candidate.source
        size = view.block_sizes.get(source)
        promised = None
        if size is not None:
            keys, start = view.keys[size], chosen.reusable_tokens // size
            ttl_s = self._predict(source, keys, now, view.depths.get(source, 0))
            promised = Promised(keys, start, ttl_s, now + ttl_s)
        held = chosen.reusable_tokens + view.context.likely_tokens.get(source, 0)
        owed = max(0, view.context.prompt_tokens - held)
        self._metrics.reservations_dropped.inc(self._ledger.make_room())
        ticket = self._ledger.reserve(
            source,
            owed,
            now,
            self._expected_s(plan, request),
            context_tokens=view.context.prompt_tokens,
            is_streamed=plan.parsed.stream,
        )
        trip = self._trip(ticket, plan, tokens, view, decision, request, promised)
        trip.shadow = self._shadow()
        if trip.shadow:
            self._metrics.shadow_picks.labels(chosen.candidate.pod.key).inc()
        else:
            trip.is_sampled = self._agreement.samples(plan.parsed)
            held, reusable = view.depths.get(source, 0), view.context.reusable_tokens
            self._agreement.decided(trip, size or DEFAULT_BLOCK_SIZE, held, reusable)
        return Picked(
            decision=decision,
            model=plan.served.name,
            prompt_tokens=view.context.prompt_tokens,
            matched_tokens=chosen.reusable_tokens,
            ticket=trip,
            strategy=decision.strategy,
            is_sampled=trip.is_sampled,
            shadow=trip.shadow,
        )

    def _trip(
        self,
        ticket: Ticket,
        plan: Plan,
        tokens: KnownTokens,
        view: View,
        decision: Decision,
        request: RouteRequest,
        promised: Promised | None,
    ) -> Trip:
        """What is remembered of the request until its answer."""
        chosen = decision.chosen
        return Trip(
            ticket=ticket,
            request_id=request.request_id,
            name=plan.served.name,
            model=plan.served.model,
            pod=chosen.candidate.pod,
            source=chosen.candidate.source,
            prompt_tokens=view.context.prompt_tokens,
            matched_tokens=chosen.reusable_tokens,
            tokens_known=view.context.tokens_known,
            ids=tokens.ids,
            is_prefix=tokens.prefix is not None,
            adapter=plan.served.adapter,
            cache_salt=plan.parsed.cache_salt,
            promised=promised,
            sequence=self._manager.sequence(chosen.candidate.source),
        )

    def count(
        self, plan: Plan, tokens: KnownTokens, view: View, decision: Decision, started: float
    ) -> None:
        """Count a decision that began at `started`."""
        rests_on = basis(plan, tokens, view, decision, self._is_out_of_step)
        self._bases.of(rests_on).inc()
        self._shortfalls.seen(plan, decision)
        if tokens.fallback is not None:
            self._metrics.fallbacks.labels(tokens.fallback).inc()
            level = logging.INFO if tokens.fallback == "tokenizer_off" else logging.WARNING
            thing = f"requests are routed without their tokens ({tokens.fallback})"
            self._spells.seen(thing, level=level)
        if tokens.ids is not None and len(tokens.ids) > self._settings.max_prompt_tokens:
            self._metrics.prompts_cut.inc()
        if plan.parsed.report_mode:
            self._metrics.report_mode.inc()
            self._spells.seen(
                "requests make engines announce their hits again (kv_cache_report_mode)",
                "copies in the index grow with it",
            )
        if not self._settings.decision_metrics:
            return
        model, sync = self._metrics.models.of(plan.served.name), self._sync
        matched, length = decision.chosen.reusable_tokens, view.context.prompt_tokens
        self._decisions.of(model, match_bucket(matched, length), sync).inc()
        self._selections.of(model, selection_of(decision), sync, decision.strategy).inc()
        self._latencies.of(model, sync).observe(self._clock() - started)
        if decision.reason == "imbalance":
            self._metrics.load_imbalance.labels(model, sync).inc()
        if view.context.tokens_known and tokens.prefix is None:
            self._prompt_tokens.of(model).inc(length)
            self._matched_tokens.of(model).inc(matched)

    def learned(self, plan: Plan, picked: Picked) -> Callable[[Tokens], None]:
        """What to do with the tokens of a prompt that was decided by its prefix.

        All of it is promised to the chosen one; only now are the prompt's tokens counted, since
        only now their number is known.
        """
        chosen, name = picked.decision.chosen, plan.served.name

        def learned(tokens: Tokens) -> None:
            self._promise(plan, chosen.candidate, tokens.ids, picked)
            if self._settings.decision_metrics:
                model = self._metrics.models.of(name)
                self._prompt_tokens.of(model).inc(len(tokens.ids))
                self._matched_tokens.of(model).inc(chosen.reusable_tokens)

        return learned

    def _is_out_of_step(self, candidate: Candidate) -> bool:
        source = candidate.source
        return self._manager.sends_events(source) and not self._manager.usable(source)

    def _promise(self, plan: Plan, candidate: Candidate, ids: "array[int]", picked: Picked) -> None:
        if candidate not in self._manager.candidates((candidate.pod,)):
            return  # it went meanwhile; the index may not know that yet
        source = candidate.source
        size = self._index.block_size(source) or DEFAULT_BLOCK_SIZE
        keys = self._index.block_keys(
            ids[: self._settings.max_prompt_tokens],
            size,
            lora=plan.served.adapter,
            cache_salt=plan.parsed.cache_salt,
        )
        if isinstance(picked.ticket, Trip):  # before anything of it is promised
            self._agreement.learned(picked.ticket, ids, keys, size)
        self._predict(source, keys, self._clock())

    def _predict(self, source: int, keys: "array[int]", now: float, held: int = 0) -> float:
        """Promise the blocks beyond the first `held`; for how long, in seconds."""
        ttl_s = (
            self._settings.prediction_ttl_s
            if self._manager.sends_events(source)
            else self._settings.prediction_ttl_no_events_s
        )
        if evicted := self._predictions.promise(source, keys, ttl_s, now, held):
            self._metrics.predictions_evicted.inc(evicted)
            self._spells.seen(
                "predicted blocks go before their time",
                "more are held than AIBRIX_EXTPROC_PREDICTION_MAX_BLOCKS",
                times=evicted,
            )
        return ttl_s

    def _expected_s(self, plan: Plan, request: RouteRequest) -> float | None:
        """How long the answer should take, where its end will not be seen; else None."""
        if request.end_seen:
            return None
        settings = self._settings
        length = plan.parsed.max_tokens or settings.expected_output_tokens
        # A client may write any number, one that no float holds among them.
        most = settings.reservation_limit_s / settings.expected_token_time_s
        return min(length, most) * settings.expected_token_time_s
