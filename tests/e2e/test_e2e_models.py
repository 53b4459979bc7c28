"""What is cached under which name: adapters, salts, ranks, token ids, tools, conversations."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig
from tests.e2e.beside import (
    BUFFERED,
    BY_ORIGINAL_DST,
    EVENTS_ALONE,
    EVERY_WIRING,
    MODES,
    Envoys,
    Wiring,
    added,
    caught_up,
    predicted,
    samples,
    serves,
)
from tests.e2e.stack import Reply, Stack, gateway
from tests.e2e.watching import PICKED, held, text
from tests.support import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys() -> AsyncIterator[Envoys]:
    """Three pods of `tiny`, two of them with adapters; two of `wide`, each of two ranks.

    The file names no adapter and no port of the events of `wide`: the pods say so themselves.
    """
    engines = [
        EngineConfig(name="tiny-0", adapters=("sql", "poems")),
        EngineConfig(name="tiny-1", adapters=("sql",)),
        EngineConfig(name="tiny-2"),
        EngineConfig(name="wide-0", model="wide", data_parallel_size=2),
        EngineConfig(name="wide-1", model="wide", data_parallel_size=2),
    ]
    async with gateway(engines=engines, listed=False, environment=EVENTS_ALONE) as stack:
        tiny = [stack.endpoint(number, adapters=[]) for number in range(3)]
        wide = [stack.endpoint(number, kv_events=True, ranks=1) for number in (3, 4)]
        stack.list_pods(*tiny, *wide)
        await serves(stack, "tiny", "wide", "sql", "poems")
        await eventually_async(lambda: listens_to(stack, 7))
        yield Envoys(stack)


async def listens_to(stack: Stack, sources: int) -> bool:
    """Whether that many sources are in step with their engines."""
    views = await stack.debug("/debug/sources")
    return [view["state"] for view in views] == ["EXACT"] * sources


def only(pod: str) -> dict[str, str]:
    return {"external-filter": f"pod={pod}"}


def assert_as_predicted(reply: Reply, *, hit: bool) -> None:
    """The pod that was picked answered, and reused just what was predicted."""
    assert reply.status == 200
    assert reply.pod == reply.headers[PICKED]
    assert predicted(reply) == reply.cached_tokens
    assert (reply.cached_tokens > 0) is hit


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_the_list_of_models_names_every_model_and_adapter(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    reply = await stack.request("GET", "/v1/models")
    assert (reply.status, reply.pod) == (200, None)
    assert [entry["id"] for entry in reply.json()["data"]] == ["poems", "sql", "tiny", "wide"]


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_an_adapter_goes_only_to_pods_that_have_it(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    prompts = [f"{number} {wiring}" for number in range(16)]
    sql = [await stack.complete(prompt, model="sql") for prompt in prompts]
    assert {reply.pod for reply in sql} == {"tiny-0", "tiny-1"}
    assert {reply.json()["model"] for reply in sql} == {"sql"}
    poems = [await stack.complete(prompt, model="poems") for prompt in prompts]
    assert {reply.pod for reply in poems} == {"tiny-0"}


SHARES = (("sql", 1), ("poems", 2), ("tiny", 4))


@pytest.mark.parametrize("wiring", [*MODES, BY_ORIGINAL_DST[0]], ids=str)
async def test_the_prefixes_of_base_model_and_adapters_do_not_mix(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"a{wiring}")
    # Each name holds another length of it, so that no hit can pass for that of another name.
    for model, share in SHARES:
        begun = prompt[: len(prompt) // share]
        first = await stack.complete(begun, model=model, headers=only("tiny-0"))
        assert_as_predicted(first, hit=False)
        await caught_up(stack)
    lengths = []
    for model, _ in SHARES:
        again = await stack.complete(prompt, model=model)
        assert again.pod == "tiny-0"
        assert_as_predicted(again, hit=True)
        lengths.append(again.cached_tokens)
    assert lengths == sorted(set(lengths), reverse=True)
    elsewhere = await stack.complete(prompt, model="sql", headers=only("tiny-1"))
    assert_as_predicted(elsewhere, hit=False)


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_decisions_are_counted_by_the_name_that_was_asked_for(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    name = "aibrix_prefix_cache_routing_decisions_total"
    before = await samples(stack, name)
    for model in ("tiny", "sql", "sql"):
        await stack.complete(f"{model} {wiring} never asked", model=model)
    grown = added(before, await samples(stack, name))
    assert {model: count for (_, model, _), count in grown.items()} == {"tiny": 1, "sql": 2}


# -- salts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_salt_shares_its_prefixes_with_nobody_else(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"b{wiring}")
    salts: list[dict[str, Any]] = [{"cache_salt": "red"}, {"cache_salt": "blue"}, {}]
    for number, salt in enumerate(salts, start=1):
        begun = prompt[: len(prompt) // number]
        first = await stack.complete(begun, headers=only("tiny-1"), **salt)
        assert_as_predicted(first, hit=False)
        await caught_up(stack)
    lengths = []
    for salt in salts:
        again = await stack.complete(prompt, **salt)
        assert again.pod == "tiny-1"
        assert_as_predicted(again, hit=True)
        lengths.append(again.cached_tokens)
    assert lengths == sorted(set(lengths), reverse=True)
    other = await stack.chat(prompt, cache_salt="green", headers=only("tiny-1"))
    assert_as_predicted(other, hit=False)


# -- data-parallel ranks ----------------------------------------------------------------------


async def answered(stack: Stack, pod: str) -> dict[str, Any]:
    """What an engine says of the last request that it answered."""
    engine = next(engine for engine in stack.engines if engine.config.name == pod)
    async with stack.session.get(f"http://{engine.address}/debug/requests") as reply:
        shown: dict[str, Any] = (await reply.json())["requests"][-1]
    return shown


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_the_rank_that_holds_a_prompt_answers_it(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    for number in range(8):
        prompt = text(f"{number}c{wiring}", 60)
        # A client's own rank must not count.
        wish = {"X-data-parallel-rank": "1", "x-data-parallel-rank": "0"}
        first = await stack.complete(prompt, model="wide", headers=wish)
        assert_as_predicted(first, hit=False)
        assert first.pod is not None
        held_by = await answered(stack, first.pod)
        assert held_by["headers"]["x-data-parallel-rank"] == str(held_by["rank"])
        await caught_up(stack)
        again = await stack.complete(prompt, model="wide", headers=wish)
        assert again.pod == first.pod
        assert_as_predicted(again, hit=True)
        assert (await answered(stack, first.pod))["rank"] == held_by["rank"]


@pytest.mark.parametrize("wiring", [BUFFERED, BY_ORIGINAL_DST[0]], ids=str)
async def test_requests_at_once_are_shared_among_all_ranks(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    ranks = [rank for engine in stack.engines[3:] for rank in engine.ranks]
    with held(stack):
        asked = [
            asyncio.create_task(stack.complete(text(f"{number}l{wiring}"), model="wide"))
            for number in range(8)
        ]
        await eventually_async(lambda: sum(rank.load for rank in ranks) == 8)
        loads = [rank.load for rank in ranks]
    assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    assert loads == [2] * 4


async def test_no_rank_is_named_to_a_pod_that_has_one(envoys: Envoys) -> None:
    stack = await envoys.by(BUFFERED)
    reply = await stack.complete("one rank", headers={"X-data-parallel-rank": "0"})
    assert reply.pod is not None
    assert "x-data-parallel-rank" not in (await answered(stack, reply.pod))["headers"]


# -- prompts of every kind --------------------------------------------------------------------


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_prompt_of_token_ids_is_found_again_as_ids_and_as_text(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"d{wiring}")
    ids = stack.engines[0].tokenizer.encode(prompt)
    first = await stack.complete(ids, headers=only("tiny-2"))
    assert_as_predicted(first, hit=False)
    assert first.json()["usage"]["prompt_tokens"] == len(ids)
    await caught_up(stack)
    for same in (ids, [ids], prompt, [prompt]):
        again = await stack.complete(same)
        assert again.pod == "tiny-2"
        assert_as_predicted(again, hit=True)
    other = await stack.complete([*ids[:640], 17, 18, 19])
    assert other.pod == "tiny-2"
    assert predicted(other) == other.cached_tokens == 640


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_the_last_block_of_a_prompt_that_fills_it_is_computed_anew(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    ids = stack.engines[0].tokenizer.encode(text(f"m{wiring}"))[: 16 * 40]
    await stack.complete(ids, headers=only("tiny-1"))
    await caught_up(stack)
    again = await stack.complete(ids)
    assert again.pod == "tiny-1"
    assert predicted(again) == again.cached_tokens == 16 * 39


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_of_several_prompts_the_first_decides(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    for number, order in enumerate(("first", "second", "twice")):
        known, other = text(f"e{number}{wiring}"), text(f"f{number}{wiring}")
        await stack.complete(known, headers=only("tiny-2"))
        await stack.complete(other, headers=only("tiny-1"))
        await caught_up(stack)
        asked = {"first": [known, other], "second": [other, known], "twice": [known, known]}
        reply = await stack.complete(asked[order])
        assert reply.pod == ("tiny-1" if order == "second" else "tiny-2")


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_the_tools_of_a_chat_are_part_of_its_prefix(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    question = text(f"g{wiring}", 100)
    tools = [tool(f"{wiring} weather"), tool("time")]
    first = await stack.chat(question, tools=tools, headers=only("tiny-0"))
    prompt_tokens = first.json()["usage"]["prompt_tokens"]
    # The preambles of all tools begin alike.
    assert predicted(first) == first.cached_tokens < 100 < prompt_tokens // 2
    await caught_up(stack)
    again = await stack.chat(question, tools=tools, tool_choice="auto")
    assert again.pod == "tiny-0"
    assert_as_predicted(again, hit=True)
    assert again.cached_tokens == (prompt_tokens - 1) // 16 * 16
    for others in ([tools[1], tools[0]], None):
        changed = await stack.chat(question, tools=others, headers=only("tiny-0"))
        assert predicted(changed) == changed.cached_tokens < 100


@pytest.mark.parametrize("wiring", EVERY_WIRING, ids=str)
async def test_each_turn_of_a_chat_finds_all_of_the_turn_before(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    messages: list[dict[str, Any]] = [{"role": "system", "content": text(f"h{wiring}", 40)}]
    pods, known = set(), 0
    for turn in range(5):
        messages.append({"role": "user", "content": f"question {turn} {text(f'i{turn}', 15)}"})
        reply = await stack.chat(messages, max_tokens=24, ignore_eos=True)
        assert_as_predicted(reply, hit=turn > 0)
        assert predicted(reply) >= known // 16 * 16
        pods.add(reply.pod)
        usage = reply.json()["usage"]
        # Of the answer the last token is not computed, and its end is not generated.
        known = usage["prompt_tokens"] + usage["completion_tokens"] - 1
        messages.append(reply.json()["choices"][0]["message"])
        await caught_up(stack)
    assert len(pods) == 1


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_chat_with_calls_of_tools_and_parts_of_content_is_found_again(
    envoys: Envoys, wiring: Wiring
) -> None:
    stack = await envoys.by(wiring)
    call = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": text(f"j{wiring}", 60)}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    first = await stack.chat(messages, tools=[tool("time")], headers=only("tiny-1"))
    prompt_tokens = first.json()["usage"]["prompt_tokens"]
    assert predicted(first) == first.cached_tokens < 100 < prompt_tokens // 2
    await caught_up(stack)
    messages.append({"role": "user", "content": "And now?"})
    again = await stack.chat(messages, tools=[tool("time")])
    assert again.pod == "tiny-1"
    # All but the header of the turn that the first request left to the model.
    assert predicted(again) == again.cached_tokens >= prompt_tokens - 32


@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_streamed_chat_counts_as_the_same_prompt(envoys: Envoys, wiring: Wiring) -> None:
    stack = await envoys.by(wiring)
    prompt = text(f"k{wiring}")
    whole = await stack.chat(prompt, headers=only("tiny-2"), temperature=0.5)
    assert_as_predicted(whole, hit=False)
    await caught_up(stack)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = await stack.chat(prompt, temperature=1.5, **options)
    assert streamed.pod == "tiny-2"
    assert_as_predicted(streamed, hit=True)
