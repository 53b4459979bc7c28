"""One decision, joined from real parts: registry, index, event sync, tokenizer, fake engines."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from aibrix_extproc import errors
from aibrix_extproc.extproc.decides import Answered, Passed
from tests.support import eventually_async
from tests.unit.decide.decide_rig import (
    LONG,
    ask,
    completion,
    engines,
    plain_pod,
    pod_of,
    request,
    running,
)

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


# -- sessions -----------------------------------------------------------------------------------


async def test_the_session_of_the_header_reaches_the_strategy_and_its_lack_is_counted() -> None:
    def counted(reason: str) -> float:
        labels = {"strategy": "session-affinity", "reason": reason}
        return rig.value("aibrix_extproc_strategy_fallback_total", **labels)

    by_session = {"routing-strategy": "session-affinity"}
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        for session, reason in (
            ("alice", "session"),
            ("x" * 256, "session"),
            ("x" * 257, "no_session"),
            ("é" * 129, "no_session"),
            (" \t", "no_session"),
        ):
            headers = by_session | {"x-session-id": session}
            picked = await rig.pick(completion("hi"), headers=headers)
            assert picked.decision.reason == reason, session[:9]
        assert (counted("session_too_long"), counted("no_session")) == (2, 1)
        await rig.pick(completion("hi"), headers=by_session)
        assert counted("no_session") == 2
        explained = await rig.decider.explain(request(completion("hi"), headers=by_session))
        assert (explained["reason"], counted("no_session")) == ("no_session", 2)
