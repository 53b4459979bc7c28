"""What is believed is compared with what engines do, and what differs is told."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.tokenizer import WordTokenizer
from aibrix_extproc.stack import envoy_config
from tests.e2e.beside import BUFFERED, DUPLEX, samples
from tests.e2e.beside import another_envoy as behind
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    PACED,
    ask_together,
    assert_whole,
    begin_answer,
    caught_up,
    counted,
    explain,
    text,
)
from tests.support import eventually_async

PICKS = "aibrix_extproc_picks_total"
PROMISES = "aibrix_extproc_promises_total"
DOUBTED = "aibrix_extproc_doubted_pods"
SAMPLES = "aibrix_extproc_usage_samples_total"
FLUSHES = "aibrix_extproc_token_flushes_total"
DIFFER = "aibrix_extproc_tokenizers_differ"
EVERY_ANSWER = {"AIBRIX_EXTPROC_USAGE_SAMPLE": "1"}


def other_tokenizer() -> WordTokenizer:
    """Other ids for the same words."""
    return WordTokenizer(vocab_size=64_000)


def log(stack: Stack) -> str:
    return stack.servers[0].process.log_path.read_text()


async def agreement(stack: Stack) -> dict[str, Any]:
    page: dict[str, Any] = await stack.debug("/debug/agreement")
    return page


# -- was the pick honoured ----------------------------------------------------------------------


async def test_load_and_predictions_follow_a_retry_to_the_pod_that_serves() -> None:
    async with gateway(engines=PACED) as stack:
        first = await stack.complete(text("a"))
        await caught_up(stack)
        assert await counted(stack, PICKS, result="honoured") == 1
        gone = next(e for e in stack.engines if e.config.name == first.pod)
        (left,) = [e.config.name for e in stack.engines if e is not gone]
        await gone.close()
        answer = await begin_answer(stack, text("a") + text("b"))
        assert answer.pod == left
        page = await explain(stack, text("a") + text("b"))
        seen = {one["pod"].removeprefix("default/"): one for one in page["candidates"]}
        assert seen[left]["load"]["decoding"] == 1
        assert seen[first.pod or ""]["load"]["requests"] == 0
        # What was predicted goes to the pod that has it; what the other held stays.
        assert seen[left]["reusable_tokens"] > seen[first.pod or ""]["reusable_tokens"] > 256
        assert_whole(await answer.rest())
        assert await counted(stack, PICKS, result="other") == 1
        page = await explain(stack, text("a"))
        assert all(one["load"]["requests"] == 0 for one in page["candidates"])


def without_attributes(config: envoy_config.Config) -> None:
    del envoy_config.ext_proc(config)["response_attributes"]
    envoy_config.ext_proc(config)["allow_mode_override"] = False


# -- predicted against actual -------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sampled() -> AsyncIterator[Stack]:
    """Every answer is read, and the engines' counters often."""
    environment = EVERY_ANSWER | {"AIBRIX_EXTPROC_ENGINE_METRICS_INTERVAL": "100ms"}
    async with gateway(engines=2, environment=environment) as stack:
        yield stack


async def grown(stack: Stack, result: str, above: float, by: int) -> None:
    """Wait until so many more samples came out so. Answers are counted just after their end."""

    async def told() -> bool:
        return await counted(stack, SAMPLES, model="tiny", result=result) == above + by

    try:
        await eventually_async(told)
    except AssertionError:
        raise AssertionError(f"samples: {await samples(stack, SAMPLES)}") from None


@pytest.mark.asyncio(loop_scope="module")
async def test_a_whole_answer_and_a_streamed_one_are_compared(sampled: Stack) -> None:
    stack = sampled
    before = await counted(stack, SAMPLES, model="tiny", result="equal")
    await stack.complete(text("s"))
    await caught_up(stack)
    again = await stack.complete(text("s"))
    streamed = await (await begin_answer(stack, text("s"))).rest()
    assert_whole(streamed)
    assert again.cached_tokens == streamed.cached_tokens > 256
    await grown(stack, "equal", before, 3)
    page = (await agreement(stack))["samples"][:3]
    assert [one["cached_tokens"] for one in page] == [again.cached_tokens] * 2 + [0]
    assert [one["predicted_minus_actual"] for one in page] == [0, 0, 0]
    assert "sw1 " not in json.dumps(page)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_stream_that_has_no_usage_is_not_asked_for(sampled: Stack) -> None:
    before = await samples(sampled, SAMPLES)
    reply = await sampled.complete(text("u"), stream=True)
    assert reply.events()[-1] == "[DONE]"
    assert await samples(sampled, SAMPLES) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_what_an_engine_forgot_shows_as_a_difference(sampled: Stack) -> None:
    stack = sampled
    first = await stack.complete(text("f"))
    await caught_up(stack)
    engine = next(e for e in stack.engines if e.config.name == first.pod)
    before = await counted(stack, SAMPLES, model="tiny", result="less")
    # The engine forgets, and nobody is told: the prediction is as of the decision.
    assert engine.ranks[0].blocks.reset()
    engine.ranks[0].blocks.take_events()
    again = await stack.complete(text("f"))
    assert again.pod == first.pod
    await grown(stack, "less", before, 1)
    newest = (await agreement(stack))["samples"][0]
    assert newest["predicted_minus_actual"] == newest["matched_tokens"] > 256


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("wiring", [BUFFERED, DUPLEX])
async def test_an_envoy_that_does_not_allow_it_breaks_nothing(sampled: Stack, wiring: Any) -> None:
    stack = await behind(sampled, wiring, edit=without_attributes)
    before = await counted(stack, SAMPLES, model="tiny", result="not_sent")
    for number in range(4):
        assert (await stack.complete(text(f"{wiring}{number}"))).status == 200
        assert_whole(await (await begin_answer(stack, text(f"{wiring}{number}"))).rest())
    await grown(stack, "not_sent", before, 8)
    assert log(stack).count("answers of sampled requests: ok → not sent") >= 1
    assert log(stack).count("the host that served: ok → not told") >= 1


@pytest.mark.asyncio(loop_scope="module")
async def test_in_duplex_answers_are_neither_held_up_nor_read(sampled: Stack) -> None:
    stack = await behind(sampled, DUPLEX)
    before = await counted(stack, SAMPLES, model="tiny", result="not_sent")
    assert_whole(await (await begin_answer(stack, text("d"))).rest())
    await grown(stack, "not_sent", before, 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_engines_own_counters_are_set_beside_predictions(sampled: Stack) -> None:
    stack = sampled

    async def read() -> bool:
        await stack.complete(text("c"))
        shares = await samples(stack, "aibrix_extproc_reuse_share_difference")
        return abs(shares.get(("tiny",), 9.0)) < 0.2

    await eventually_async(read)
    assert await counted(stack, "aibrix_extproc_engine_prompt_tokens_total", model="tiny") > 1000


# -- do the tokens agree ------------------------------------------------------------------------


async def test_what_was_sent_is_found_among_what_events_say() -> None:
    async with gateway(engines=2) as stack:
        await ask_together(stack, [stack.complete(text(number)) for number in range(4)])

        async def confirmed() -> bool:
            found = await samples(stack, PROMISES)
            return sum(value for labels, value in found.items() if "confirmed" in labels) == 4

        await eventually_async(confirmed)
        assert (await agreement(stack))["models"]["tiny"]["warnings"] == []


async def test_a_tokenizer_of_another_version_is_found_out_and_named() -> None:
    config = EngineConfig(name="tokenizer", kv_events_port=None)
    tokenizer = await FakeEngine(config, other_tokenizer()).start()
    environment = {"AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": f"http://{tokenizer.address}"}
    try:
        async with gateway(engines=1, environment=environment) as stack:
            for number in range(10):
                assert (await stack.complete(text(number))).status == 200

            async def doubted() -> bool:
                return await counted(stack, DOUBTED, model="tiny", kind="plain") == 1

            await eventually_async(doubted, timeout_s=15)
            (warning,) = (await agreement(stack))["models"]["tiny"]["warnings"]
            assert warning["pods"] == ["default/engine-0"]
            assert "tokenizer" in warning["likely_causes"][0]
            assert log(stack).count("agree → disagree at default/engine-0") == 1
            assert await counted(stack, DIFFER, model="tiny") == 1
    finally:
        await tokenizer.close()


async def test_a_restarted_engine_with_other_tokens_is_named_and_tokens_are_forgotten() -> None:
    async with gateway(engines=2) as stack:
        await ask_together(stack, [stack.complete(text(number)) for number in range(4)])
        await caught_up(stack)

        async def known() -> bool:
            page = (await agreement(stack))["models"].get("tiny", {})
            return len(page.get("tokenizers", ())) == 2

        await eventually_async(known)
        assert await counted(stack, DIFFER, model="tiny") == 0
        assert await counted(stack, "aibrix_extproc_tokenizer_cache_bytes") > 0
        old = stack.engines[1]
        await old.close()
        stack.engines[1] = await FakeEngine(old.config, other_tokenizer()).start()

        async def named() -> bool:
            differs = await counted(stack, DIFFER, model="tiny") == 1
            return differs and await counted(stack, FLUSHES, reason="restart") >= 1

        await eventually_async(named, timeout_s=20)
        page = (await agreement(stack))["models"]["tiny"]["tokenizers_that_differ"]
        assert page["in"] == "text"
        assert page["pods"] == ["default/engine-1"]
        assert await counted(stack, "aibrix_extproc_tokenizer_cache_bytes") == 0
        assert log(stack).count("tokenizers of tiny: agree → differ at default/engine-1") == 1


async def test_a_pod_replaced_under_its_name_makes_tokens_be_forgotten() -> None:
    async with gateway(engines=1) as stack, FakeEngine(EngineConfig(name="engine-0")) as other:
        await stack.complete(text("r"))
        assert await counted(stack, "aibrix_extproc_tokenizer_cache_bytes") > 0
        stack.list_pods(stack.endpoint(0) | {"address": other.address})

        async def forgotten() -> bool:
            return await counted(stack, FLUSHES, reason="replaced") == 1

        await eventually_async(forgotten)
        assert await counted(stack, "aibrix_extproc_tokenizer_cache_bytes") == 0
