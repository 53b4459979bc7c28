"""What `/tokenize` says, what the events say and what the engine reuses are one and the same."""

import asyncio
import random
from typing import Any

import pytest

from aibrix_extproc.fakes.config import TimeModel
from tests.support import eventually_async
from tests.unit.fakes.fake_engine_rig import Copies, Rig, cached, rig

SIZE = 4
WORDS = ("cache", "route", "model", "token", "block", "source", "prefix", "gateway", "terms")
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def text(seed: int, words: int = 12) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def user(seed: int) -> dict[str, Any]:
    return {"role": "user", "content": text(seed)}


CHATS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [user(1)]},
    "system": {"messages": [{"role": "system", "content": text(2)}, user(3)]},
    "tools": {"messages": [user(4)], "tools": TOOLS},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": text(5)}]}]},
    "kwargs": {"messages": [user(6)], "chat_template_kwargs": {"style": "brief"}},
    "continued": {
        "messages": [user(7), {"role": "assistant", "content": "It is"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
}


async def announced(engine: Rig, body: dict[str, Any], path: str) -> list[int]:
    """The tokens of the blocks that a request stores in an empty engine, prompt and answer."""
    await engine.ask("/reset_prefix_cache", None)
    before = len((await engine.events()).events)
    await engine.ask(path, {**body, "max_tokens": 1})
    stored = (await engine.events()).events[before:]
    return [t for event in stored if event["type"] == "BlockStored" for t in event["token_ids"]]


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_is_announced_as_it_is_tokenized(name: str) -> None:
    async with rig() as engine:
        tokens = await engine.tokenize(CHATS[name])
        stored = await announced(engine, CHATS[name], "/v1/chat/completions")
        assert stored == tokens[: len(tokens) // SIZE * SIZE]
        assert len(stored) >= SIZE


async def test_a_completion_is_announced_as_it_is_tokenized() -> None:
    async with rig() as engine:
        tokens = await engine.tokenize({"prompt": text(1)})
        for prompt in (text(1), tokens):
            stored = await announced(engine, {"prompt": prompt}, "/v1/completions")
            assert stored == tokens[: len(tokens) // SIZE * SIZE]


@pytest.mark.parametrize(
    ("extra", "moved"),
    [
        (
            {"reasoning_effort": "high"},
            {"chat_template_kwargs": {"reasoning_effort": "high", "enable_thinking": True}},
        ),
        (
            {"documents": [{"text": "d"}]},
            {"chat_template_kwargs": {"documents": [{"text": "d"}]}},
        ),
    ],
)
async def test_what_tokenize_does_not_read_must_be_moved_to_the_template(
    extra: dict[str, Any], moved: dict[str, Any]
) -> None:
    async with rig() as engine:
        body = {"messages": [user(1)], "max_tokens": 1, "return_token_ids": True}
        reply = await engine.ask("/v1/chat/completions", {**body, **extra})
        assert reply["prompt_token_ids"] != await engine.tokenize({**body, **extra})
        assert reply["prompt_token_ids"] == await engine.tokenize({**body, **moved})


async def test_an_effort_of_none_changes_nothing() -> None:
    async with rig() as engine:
        body = {"messages": [user(1)], "max_tokens": 1, "return_token_ids": True}
        reply = await engine.ask("/v1/chat/completions", {**body, "reasoning_effort": "none"})
        assert reply["prompt_token_ids"] == await engine.tokenize(body)


@pytest.mark.parametrize("excluded", [True, False])
async def test_unused_tools_are_left_out_where_the_engine_is_told_so(excluded: bool) -> None:
    async with rig(exclude_tools_when_tool_choice_none=excluded) as engine:
        body = {"messages": [user(1)], "tools": TOOLS, "tool_choice": "none", "max_tokens": 1}
        reply = await engine.ask("/v1/chat/completions", {**body, "return_token_ids": True})
        assert (reply["prompt_token_ids"] == await engine.tokenize(body)) == (not excluded)


async def test_the_next_turn_finds_the_whole_last_turn() -> None:
    async with rig() as engine:
        messages = [user(1)]
        for turn in range(2, 5):
            body = {"messages": messages, "max_tokens": 23}
            before = len(await engine.tokenize(body))
            reply = await engine.ask("/v1/chat/completions", body)
            messages = [*messages, reply["choices"][0]["message"], user(turn)]
            following = await engine.ask(
                "/v1/chat/completions", {"messages": messages, "max_tokens": 1}
            )
            assert cached(following) == (before + 22) // SIZE * SIZE


async def test_adapters_and_salts_are_told_in_the_events_and_share_nothing() -> None:
    async with rig(adapters=("a", "b")) as engine:
        body = {"prompt": text(1), "max_tokens": 1}
        for model, salt in (("tiny", None), ("b", None), ("tiny", "s"), ("b", "s")):
            asked = {**body, "model": model, **({"cache_salt": salt} if salt else {})}
            assert cached(await engine.ask("/v1/completions", asked)) == 0
            again = cached(await engine.ask("/v1/completions", asked))
            adapter = None if model == "tiny" else model
            tokens = await engine.tokenize({"prompt": text(1), "model": model})
            found = await engine.events()
            assert again == found.cached_tokens(tokens, SIZE, adapter, salt) > 0
        begun = [e for e in (await engine.events()).events if e["parent_block_hash"] is None]
        told = [(event["lora_id"], event["lora_name"], event["extra_keys"][0]) for event in begun]
        assert told == [
            (None, None, None),
            (2, "b", ["b"]),
            (None, None, ["s"]),
            (2, "b", ["b", "s"]),
        ]


async def test_each_rank_has_a_cache_and_a_stream_of_its_own() -> None:
    async with rig(data_parallel_size=3) as engine:
        body = {"prompt": text(1), "max_tokens": 1}
        for rank in ("2", "0"):
            assert cached(await engine.ask("/v1/completions", body, X_data_parallel_rank=rank)) == 0
            assert cached(await engine.ask("/v1/completions", body, X_data_parallel_rank=rank)) > 0
        told = [bool((await engine.events(rank)).events) for rank in range(3)]
        assert told == [True, False, True]
        one, other = [(await engine.events(rank)).events[0]["block_hashes"] for rank in (0, 2)]
        assert set(one).isdisjoint(other)
        status, _ = await engine.post("/v1/completions", body, X_data_parallel_rank="3")
        assert status == 400


async def test_without_a_rank_the_least_loaded_one_answers() -> None:
    async with rig(data_parallel_size=2, time=TimeModel(decode_ms_per_token=2.0)) as engine:
        body = {"prompt": text(1), "max_tokens": 20}
        await asyncio.gather(*(engine.ask("/v1/completions", body) for _ in range(6)))
        assert [len((await engine.events(rank)).events) > 0 for rank in range(2)] == [True, True]


async def test_a_reset_is_announced_with_the_next_step_and_refused_while_one_runs() -> None:
    async with rig(time=TimeModel(decode_ms_per_token=2.0)) as engine:
        body = {"prompt": text(1), "max_tokens": 1}
        await engine.ask("/v1/completions", body)
        assert await engine.ask("/reset_prefix_cache", None) == {"success": True}
        assert len((await engine.events()).events) == 1
        assert cached(await engine.ask("/v1/completions", body)) == 0
        types = [event["type"] for event in (await engine.events()).events]
        assert types == ["BlockStored", "AllBlocksCleared", "BlockStored"]
        running = asyncio.ensure_future(engine.ask("/v1/completions", {**body, "max_tokens": 200}))
        await eventually_async(lambda: engine.engine.ranks[0].blocks.used_blocks)
        assert await engine.ask("/reset_prefix_cache", None) == {"success": False}
        running.cancel()


@pytest.mark.parametrize(("hold", "go_on"), [("/sleep?level=1", "/wake_up"), ("/pause", "/resume")])
async def test_an_engine_that_was_held_has_forgotten_all(hold: str, go_on: str) -> None:
    async with rig() as engine:
        body = {"prompt": text(1), "max_tokens": 1}
        await engine.ask("/v1/completions", body)
        await engine.ask(hold, None)
        waits = asyncio.ensure_future(engine.ask("/v1/completions", body))
        await eventually_async(lambda: engine.engine.ranks[0].scheduler.waiting)
        assert (await engine.get("/health"))[0] == 200
        await engine.ask(go_on, None)
        assert cached(await waits) == 0
        types = [event["type"] for event in (await engine.events()).events]
        assert types == ["BlockStored", "AllBlocksCleared", "BlockStored"]


@pytest.mark.parametrize("version", ["0.23.0", "0.32.0"])
async def test_events_predict_what_is_reused_whatever_is_asked(version: str) -> None:
    """Repeats, exact multiples, branches, adapters and salts in a cache too small for them."""
    async with rig(num_blocks=40, adapters=("a",), hash_bytes=32, vllm_version=version) as engine:
        chance = random.Random(version)
        prompts: list[list[int]] = [[20]]
        for _ in range(150):
            begin = chance.choice(prompts)[: chance.randint(0, 60)]
            length = chance.choice([4, 8, 24, chance.randint(1, 60)])
            tokens = (begin + [chance.randint(20, 90) for _ in range(60)])[:length]
            prompts.append(tokens)
            model, salt = chance.choice(["tiny", "tiny", "a"]), chance.choice([None, None, "s"])
            found = await index_of(engine)
            expected = found.cached_tokens(tokens, SIZE, None if model == "tiny" else model, salt)
            body = {"model": model, "prompt": tokens, "max_tokens": chance.choice([1, 9])}
            reply = await engine.ask("/v1/completions", {**body, "cache_salt": salt})
            assert cached(reply) == expected
        assert any(event["type"] == "BlockRemoved" for event in (await index_of(engine)).events)


async def index_of(engine: Rig) -> Copies:
    """What the publisher has in its buffer, applied in order: quicker than a replay."""
    found = Copies()
    publisher = await engine.settled()
    for _, payload in list(publisher._buffer):
        found.apply(payload)
    return found
