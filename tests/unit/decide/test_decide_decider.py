"""One decision, joined from real parts: registry, index, event sync, tokenizer, fake engines."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aibrix_extproc import errors
from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.decide import Decider
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.decides import Answered, Passed, Picked, RouteRequest
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.routing.types import Load
from aibrix_extproc.routing.words import match_bucket
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool
from tests.support import eventually_async

LEAST = {"routing-strategy": "least-request"}
LONG = " ".join(f"word{i}" for i in range(400))


class Rig:
    """All that a decision needs, without Envoy."""

    def __init__(self, settings: Settings) -> None:
        self.shadow = False
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.index = PrefixIndex()
        self.predictions = Predictions(settings.prediction_max_blocks)
        self.ledger = Ledger(settings.reservation_limit_s)
        self.manager = SourceManager(
            self.index, settings, self.metrics, self.predictions.drop, self.ledger.forget
        )
        self.registry.subscribe(self.manager.on_pod)
        self.tokenizer = TokenizerPool(settings, self.metrics)
        self.decider = Decider(
            settings,
            self.metrics,
            self.registry,
            self.manager,
            self.index,
            self.tokenizer,
            self.ledger,
            self.predictions,
            rng=Random(1),
            shadow=lambda: self.shadow,
        )

    async def pick(self, body: dict[str, Any], **more: Any) -> Picked:
        outcome = await self.decider.decide(request(body, **more))
        assert isinstance(outcome, Picked)
        return outcome

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def running(pods: Sequence[Pod] | None = (), **settings: Any) -> AsyncIterator[Rig]:
    """A rig with these pods; None: no listing has been complete yet."""
    rig = Rig(Settings(use_remote_tokenizer=True, **settings))
    await rig.tokenizer.start()
    rig.manager.start_events()
    if pods is not None:
        rig.registry.replace(pods)
    try:
        yield rig
    finally:
        await rig.tokenizer.close()
        await asyncio.to_thread(rig.manager.close)


@contextlib.asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[FakeEngine]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(FakeEngine(EngineConfig(name=f"e{i}")))
            for i in range(count)
        ]


def pod_of(engine: FakeEngine, **more: Any) -> Pod:
    rank = Rank(
        0,
        f"tcp://127.0.0.1:{engine.event_ports[0]}",
        f"tcp://127.0.0.1:{engine.replay_ports[0]}",
    )
    return Pod(
        "default",
        engine.config.name,
        "uid",
        engine.address,
        "tiny",
        **{"kv_events": True, "ranks": (rank,), **more},
    )


def plain_pod(name: str, **more: Any) -> Pod:
    """A pod that nobody can reach: for what needs no tokens."""
    return Pod("default", name, "uid", f"127.0.0.1:{9000 + len(name)}", "tiny", **more)


def request(
    body: dict[str, Any] | bytes, path: str = "/v1/completions", method: str = "POST", **more: Any
) -> RouteRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RouteRequest(method, path, more.pop("headers", {}), raw, "id", **more)


def completion(prompt: str, model: str = "tiny") -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 1}


async def ask(engine: FakeEngine, prompt: str) -> int:
    """Send a prompt straight to an engine; the tokens that it reused."""
    url = f"http://{engine.address}/v1/completions"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=completion(prompt)) as reply,
    ):
        usage = (await reply.json())["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])


# -- what is decided at all ---------------------------------------------------------------------


async def test_requests_pass_until_the_first_listing_is_complete() -> None:
    async with running(None) as rig:
        outcome = await rig.decider.decide(request(completion("hi")))
        assert outcome == Passed("pods_not_listed")


async def test_the_list_of_models_is_answered_from_the_registry() -> None:
    async with running([plain_pod("a", adapters=("lora",))]) as rig:
        outcome = await rig.decider.decide(request(b"", "/v1/models?x=1", "GET"))
        assert isinstance(outcome, Answered)
        listing = json.loads(outcome.body)
        assert [entry["id"] for entry in listing["data"]] == ["lora", "tiny"]


async def test_an_unknown_model_is_told_on_the_two_paths_and_passes_on_others() -> None:
    async with running([plain_pod("a")]) as rig:
        with pytest.raises(errors.ModelNotFound):
            await rig.decider.decide(request(completion("hi", "nope")))
        assert await rig.decider.decide(
            request({"model": "nope", "input": "hi"}, "/v1/embeddings")
        ) == Passed("model_not_known")
        assert await rig.decider.decide(request(b"no json", "/v1/embeddings")) == Passed("no_model")
        assert await rig.decider.decide(request(b"{}", "/health")) == Passed("other_path")


async def test_another_path_with_a_known_model_is_routed_by_load() -> None:
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        body = {"model": "tiny", "input": "hi"}
        first = await rig.pick(body, path="/v1/embeddings")
        second = await rig.pick(body, path="/v1/embeddings")
        assert first.decision.chosen.candidate.source != second.decision.chosen.candidate.source


async def test_without_a_ready_pod_the_client_is_told_and_the_model_is_named_in_metrics() -> None:
    async with running([plain_pod("a", ready=False)]) as rig:
        with pytest.raises(errors.NoPodReady) as caught:
            await rig.decider.decide(request(completion("hi")))
        assert caught.value.model_label == "tiny"


async def test_an_unknown_strategy_is_told() -> None:
    async with running([plain_pod("a")]) as rig:
        with pytest.raises(errors.UnknownStrategy, match="prefix-cache"):
            await rig.pick(completion("hi"), headers={"routing-strategy": "best"})


async def test_on_another_path_an_unknown_strategy_is_no_error() -> None:
    async with running([plain_pod("a")]) as rig:
        body = {"model": "tiny", "input": "hi"}
        headers = {"routing-strategy": "best"}
        picked = await rig.pick(body, path="/v1/embeddings", headers=headers)
        assert picked.strategy == "prefix-cache"


async def test_a_filter_and_a_subset_leave_only_what_they_allow() -> None:
    a, b = plain_pod("a", labels={"tier": "gold"}), plain_pod("bb", labels={"tier": "tin"})
    async with running([a, b]) as rig:
        headers = {"routing-strategy": "random", "external-filter": "tier=gold"}
        picked = await rig.pick(completion("hi"), headers=headers)
        assert [s.candidate.pod.name for s in picked.decision.ranking] == ["a"]
        headers = {"routing-strategy": "random"}
        picked = await rig.pick(completion("hi"), headers=headers, subset=frozenset([b.address]))
        assert [s.candidate.pod.name for s in picked.decision.ranking] == ["bb"]
        for hopeless in (
            {"headers": {"external-filter": "tier=iron"}},
            {"subset": frozenset[str]()},
        ):
            with pytest.raises(errors.NoCandidate):
                await rig.decider.decide(request(completion("hi"), **hopeless))


# -- tokens, depth and load ---------------------------------------------------------------------


async def test_the_pod_that_holds_the_prefix_is_picked_and_what_it_reuses_is_predicted() -> None:
    async with engines(3) as three, running([pod_of(e) for e in three], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await ask(three[1], LONG)
        await eventually_async(lambda: rig.index.stats().placements)
        picked = await rig.pick(completion(LONG + " and more"))
        assert picked.decision.chosen.candidate.pod.name == "e1"
        assert picked.decision.reason == "prefix"
        assert picked.matched_tokens == await ask(three[1], LONG + " and more") > 300


async def test_a_source_that_is_not_believed_counts_as_holding_nothing() -> None:
    async with (
        engines(2) as two,
        running(
            [pod_of(e) for e in two], kv_event_sync=True, prediction_ttl_s=0.0, kv_lost_after_s=0.2
        ) as rig,
    ):
        await eventually_async(rig.manager.synced)
        await ask(two[0], LONG)
        await eventually_async(lambda: rig.index.stats().placements)
        await two[0].close()
        await eventually_async(lambda: not all(view.usable for view in rig.manager.views()))
        picked = await rig.pick(completion(LONG))
        assert picked.matched_tokens == 0


async def test_without_a_tokenizer_load_decides_and_the_reason_is_counted() -> None:
    async with running([plain_pod("a"), plain_pod("bb")], tokenizer_breaker_failures=1) as rig:
        picked = await rig.pick(completion(LONG))
        assert not picked.matched_tokens
        assert picked.prompt_tokens == -(-len(LONG) // 4)
        assert rig.value("aibrix_extproc_fallback_total", reason="refused") == 1


@contextlib.asynccontextmanager
async def hanging_tokenizer() -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Event]]:
    """Its URL, an event that it was asked, and one that lets it fail."""
    asked, leave = asyncio.Event(), asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        asked.set()
        await leave.wait()
        return web.Response(status=500)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}", asked, leave
    finally:
        leave.set()
        await runner.cleanup()


async def test_over_the_deadline_load_decides() -> None:
    async with (
        hanging_tokenizer() as (url, asked, _),
        running([plain_pod("a")], tokenizer_endpoint=url, decision_timeout_s=0.05) as rig,
    ):
        picked = await rig.pick(completion(LONG))
        assert asked.is_set()
        assert picked.matched_tokens == 0
        assert rig.value("aibrix_extproc_fallback_total", reason="deadline") == 1


async def test_a_pod_that_goes_while_its_prompt_is_tokenized_is_not_picked() -> None:
    a, b = plain_pod("a"), plain_pod("bb")
    async with (
        hanging_tokenizer() as (url, asked, leave),
        running([a, b], tokenizer_endpoint=url, decision_timeout_s=30.0) as rig,
    ):
        deciding = [asyncio.create_task(rig.pick(completion(LONG))) for _ in range(4)]
        await asked.wait()
        rig.registry.remove(a.key)
        leave.set()
        for picked in await asyncio.gather(*deciding):
            assert [s.candidate.pod.name for s in picked.decision.ranking] == ["bb"]


async def test_pods_that_all_go_while_a_prompt_is_tokenized_leave_nobody_to_pick() -> None:
    async with (
        hanging_tokenizer() as (url, asked, leave),
        running([plain_pod("a")], tokenizer_endpoint=url, decision_timeout_s=30.0) as rig,
    ):
        deciding = asyncio.create_task(rig.pick(completion(LONG)))
        await asked.wait()
        rig.registry.upsert(plain_pod("a", ready=False))
        leave.set()
        with pytest.raises(errors.NoPodReady) as caught:
            await deciding
        assert caught.value.model_label == "tiny"
        assert not len(rig.ledger)


async def test_a_strategy_that_needs_no_tokens_asks_for_none() -> None:
    async with running([plain_pod("a")]) as rig:
        await rig.pick(completion(LONG), headers={"routing-strategy": "random"})
        assert rig.value("aibrix_extproc_tokenizer_cache_total", result="miss") == 0


async def test_with_event_sync_off_predictions_bring_a_prompt_back_to_its_pod() -> None:
    async with engines(3) as three, running([pod_of(e) for e in three]) as rig:
        first = await rig.pick(completion(LONG))
        rig.decider.release(first.ticket)
        again = await rig.pick(completion(LONG + " and more"))
        assert again.decision.chosen.candidate == first.decision.chosen.candidate
        assert again.matched_tokens > 300


async def test_a_salt_and_an_adapter_keep_prompts_apart() -> None:
    async with engines(1) as one, running([pod_of(one[0], adapters=("lora",))]) as rig:
        await rig.pick(completion(LONG))
        assert (await rig.pick({**completion(LONG), "cache_salt": "s"})).matched_tokens == 0
        assert (await rig.pick({**completion(LONG), "cache_salt": "s"})).matched_tokens > 300


async def test_equal_requests_at_one_moment_do_not_all_choose_one_pod() -> None:
    async with engines(3) as three, running([pod_of(e) for e in three]) as rig:
        picks = await asyncio.gather(*(rig.pick(completion(LONG)) for _ in range(10)))
        assert len({p.decision.chosen.candidate.source for p in picks}) == 3


async def test_the_load_of_a_pod_that_went_is_forgotten() -> None:
    async with running([plain_pod("a")]) as rig:
        picked = await rig.pick(completion("hi"), headers={"routing-strategy": "random"})
        rig.registry.remove("default/a")
        assert not rig.ledger.loads(0.0)
        rig.decider.prefill_done(picked.ticket)
        rig.decider.release(picked.ticket)
        assert not rig.ledger.loads(0.0)


async def test_predictions_of_a_pod_that_went_are_gone_with_it() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two]) as rig:
        first = await rig.pick(completion(LONG))
        rig.registry.remove(first.decision.chosen.candidate.pod.key)
        again = await rig.pick(completion(LONG))
        assert again.matched_tokens == 0


# -- what follows -------------------------------------------------------------------------------


async def test_load_is_reserved_until_the_answer_has_ended() -> None:
    async with running([plain_pod("a")]) as rig:
        picked = await rig.pick(completion(LONG), headers={"routing-strategy": "random"})
        source = picked.decision.chosen.candidate.source
        load = rig.ledger.loads(0.0)[source]
        assert (load.requests, load.prefill_tokens) == (1, picked.prompt_tokens)
        rig.decider.prefill_done(picked.ticket)
        assert rig.ledger.loads(0.0)[source].decoding == 1
        rig.decider.release(picked.ticket)
        assert not rig.ledger.loads(0.0)


async def test_where_the_end_is_not_seen_the_reservation_lasts_as_long_as_the_answer_should() -> (
    None
):
    async with running(
        [plain_pod("a")], expected_token_time_s=0.001, reservation_limit_s=1000.0
    ) as rig:
        headers = {"routing-strategy": "random"}
        await rig.pick({**completion("hi"), "max_tokens": 20}, headers=headers, end_seen=False)
        await rig.pick({**completion("hi"), "max_tokens": 20}, headers=headers, end_seen=True)
        loop = asyncio.get_running_loop()
        await eventually_async(lambda: len(rig.ledger.loads(loop.time())) == 1)
        await eventually_async(
            lambda: sum(load.requests for load in rig.ledger.loads(loop.time()).values()) == 1
        )


async def test_a_limit_of_tokens_beyond_all_reason_lasts_as_long_as_any_reservation() -> None:
    async with running([plain_pod("a")], reservation_limit_s=1000.0) as rig:
        body = {**completion("hi"), "max_tokens": 10**400}
        headers = {"routing-strategy": "random"}
        picked = await rig.pick(body, headers=headers, end_seen=False)
        assert isinstance(picked.ticket, Trip)
        assert 900 < picked.ticket.ticket.deadline_s - asyncio.get_running_loop().time() <= 1000


async def test_explain_says_why_and_reserves_nothing() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await ask(two[0], LONG)
        await eventually_async(lambda: rig.index.stats().placements)
        told = await rig.decider.explain(request(completion(LONG)))
        assert told["reason"] == "prefix"
        best, other = told["candidates"]
        assert best["pod"] == "default/e0"
        assert best["depth"] * best["block_size"] >= best["reusable_tokens"] > 300
        assert other["reusable_tokens"] == 0
        assert best["score"] < other["score"]
        assert not rig.ledger.loads(0.0)
        assert len(rig.predictions) == 0
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == 0
        json.dumps(told)


async def test_a_decision_is_counted_under_aibrix_names() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two]) as rig:
        rig.decider.release((await rig.pick(completion(LONG))).ticket)
        await rig.pick(completion(LONG))
        for bucket in ("0", "76-99"):
            assert (
                rig.value(
                    "aibrix_prefix_cache_routing_decisions_total",
                    model="tiny",
                    match_percent_bucket=bucket,
                    using_kv_sync="false",
                )
                == 1
            )


async def test_the_metrics_of_decisions_can_be_switched_off() -> None:
    async with engines(1) as one, running([pod_of(one[0])], decision_metrics=False) as rig:
        await rig.pick(completion(LONG))
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == 0


@pytest.mark.parametrize(
    ("matched", "length", "bucket"),
    [
        (0, 100, "0"),
        (0, 0, "0"),
        (1, 1000, "0"),
        (1, 100, "1-25"),
        (26, 100, "26-50"),
        (51, 100, "51-75"),
        (99, 100, "76-99"),
        (100, 100, "100"),
    ],
)
def test_the_share_that_matched_falls_into_aibrix_buckets(
    matched: int, length: int, bucket: str
) -> None:
    assert match_bucket(matched, length) == bucket


# -- shadow mode ------------------------------------------------------------------------------


async def test_in_shadow_mode_it_is_decided_as_ever_and_counted_by_the_pod() -> None:
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        rig.shadow = True
        picks = [await rig.pick(completion("x"), headers=LEAST) for _ in range(4)]
        assert all(pick.shadow for pick in picks)
        # Their load is reserved, else all would go to one pod.
        for name in ("a", "bb"):
            assert rig.value("aibrix_extproc_shadow_picks_total", pod=f"default/{name}") == 2
        rig.shadow = False
        assert not (await rig.pick(completion("x"), headers=LEAST)).shadow
        assert rig.value("aibrix_extproc_shadow_picks_total", pod="default/a") == 2


async def test_who_serves_in_shadow_mode_says_nothing_of_the_pick_and_moves_no_load() -> None:
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        rig.shadow = True
        pick = await rig.pick(completion("x"), headers=LEAST)
        chosen = pick.decision.chosen.candidate
        other = next(pod for pod in rig.registry.pods() if pod.key != chosen.pod.key)
        ticket: Any = pick.ticket
        rig.decider.prefill_done(ticket, other.address, True)
        assert rig.value("aibrix_extproc_picks_total", result="other") == 0
        assert rig.ledger.loads(0.0)[chosen.source].decoding == 1
        rig.decider.release(ticket)
        assert rig.ledger.loads(0.0).get(chosen.source, Load()).requests == 0


# -- what is remembered -----------------------------------------------------------------------


async def test_a_decision_is_remembered_with_its_request_and_no_word_of_its_prompt() -> None:
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        body = completion("a secret prompt")
        picked = await rig.pick(body, headers=LEAST, traceparent=traceparent)
        (record,) = rig.decider.ring.newest_first(10, "id")
        assert record.traceparent == traceparent
        assert record.decision.chosen == picked.decision.chosen
        assert (record.candidates, record.shadow, record.fallback) == (2, False, None)
        assert record.took_s >= 0
        assert "secret" not in str(record)


async def test_a_fallback_is_remembered_with_its_reason() -> None:
    async with running([plain_pod("a")]) as rig:
        await rig.pick(completion("x"))
        (record,) = rig.decider.ring.newest_first(1)
        assert record.fallback is not None
        assert record.tokens_known is False


async def test_to_explain_leaves_no_record_and_neither_does_an_error() -> None:
    async with running([plain_pod("a")]) as rig:
        await rig.decider.explain(request(completion("x"), headers=LEAST))
        with pytest.raises(errors.ModelNotFound):
            await rig.decider.decide(request(completion("x", model="none")))
        assert rig.decider.ring.newest_first(1) == []
