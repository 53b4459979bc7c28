"""Known prefixes through the pool, against a real HTTP tokenizer."""

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aibrix_extproc.extproc.openai import parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer import pool as pool_module
from aibrix_extproc.tokenizer.pool import Prefix, TokenizerPool, Tokens
from tests.support import eventually_async
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, expected, tokenizer_server

ENOUGH_S = 10.0
LONG = "a long text of which much can be known " * 10 + "all"


def chat(*messages: dict[str, str]) -> Prompt:
    body = json.dumps({"model": "m", "messages": messages}).encode()
    prompt = parse_body("/v1/chat/completions", body).prompt
    assert prompt is not None
    return prompt


def turns(name: str, count: int) -> list[dict[str, str]]:
    """A conversation up to its turn `count`, which ends with the user's message."""
    messages = []
    for turn in range(count):
        messages.append({"role": "user", "content": f"{LONG} {name} {turn}"})
        messages.append({"role": "assistant", "content": f"to {name} {turn}"})
    return messages[:-1]


class Rig:
    def __init__(self, **settings: Any) -> None:
        self.metrics = Metrics()
        self.pool = TokenizerPool(Settings(tokenizer_render=False, **settings), self.metrics)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"aibrix_extproc_{name}", labels) or 0.0

    async def learn(self, server: TokenizerServer, *names: str, count: int = 3) -> None:
        """Conversations in which every prompt is waited for."""
        for name in names:
            for turn in range(1, count + 1):
                await self.pool.tokenize(chat(*turns(name, turn)), [server.address], ENOUGH_S)

    def prefix(self, name: str, count: int) -> Prefix | None:
        return self.pool.prefix(chat(*turns(name, count)))


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[tuple[Rig, TokenizerServer]]:
    rig = Rig(**settings)
    async with tokenizer_server() as server:
        await rig.pool.start()
        try:
            yield rig, server
        finally:
            server.gate.set()
            await rig.pool.close()


def ids(name: str, count: int) -> "array[int]":
    return expected({"messages": turns(name, count)})


async def test_the_next_turn_is_known_up_to_the_last_one_without_a_call() -> None:
    async with started() as (rig, server):
        await rig.learn(server, "ann", "bob")
        asked = len(server.requests)
        known = rig.prefix("bob", 4)
        assert known is not None
        assert known.ids == ids("bob", 4)[: len(known.ids)]
        assert len(known.ids) > 0.7 * len(ids("bob", 4))
        assert abs(known.estimated_tokens - len(ids("bob", 4))) < 0.1 * len(ids("bob", 4))
        assert len(server.requests) == asked
        assert rig.value("token_prefix_total", result="enough") == 1


async def test_too_little_and_nothing_are_counted_apart() -> None:
    async with started(prefix_decide_share=1.0) as (rig, server):
        await rig.learn(server, "ann", "bob")
        assert rig.prefix("bob", 4) is None
        assert rig.value("token_prefix_total", result="short") == 1
        assert rig.pool.prefix(chat({"role": "system", "content": "x"})) is None
        assert rig.value("token_prefix_total", result="none") == 1


async def test_the_setting_switches_it_off() -> None:
    async with started(conversation_cache=False) as (rig, server):
        await rig.learn(server, "ann", "bob")
        assert rig.prefix("bob", 4) is None
        assert rig.value("token_prefix_total", result="none") == 0
        assert rig.value("conversation_cache_bytes") == 0


async def test_a_prompt_tokenized_later_is_handed_over_and_makes_the_next_known() -> None:
    async with started() as (rig, server):
        await rig.learn(server, "ann", "bob")
        server.gate.clear()
        found: list[Tokens] = []
        rig.pool.tokenize_later(chat(*turns("bob", 4)), [server.address], found.append)
        assert not found
        server.gate.set()
        await eventually_async(lambda: found)
        assert found[0].ids == ids("bob", 4)
        known = rig.prefix("bob", 5)
        assert known is not None
        assert len(known.ids) > len(ids("bob", 3))
        assert rig.value("tokenized_later_total", result="done") == 1


async def test_who_needs_the_tokens_shares_the_call_that_nobody_waited_for() -> None:
    async with started() as (rig, server):
        server.gate.clear()
        found: list[Tokens] = []
        prompt = chat(*turns("ann", 1))
        rig.pool.tokenize_later(prompt, [server.address], found.append)
        waiting = asyncio.create_task(rig.pool.tokenize(prompt, [server.address], ENOUGH_S))
        await eventually_async(lambda: rig.value("tokenizer_cache_total", result="shared"))
        server.gate.set()
        assert (await waiting).source == "shared"
        await eventually_async(lambda: found)
        assert len(server.requests) == 1


async def test_a_later_call_that_fails_is_counted_and_nothing_is_handed_over() -> None:
    async with started() as (rig, _):
        found: list[Tokens] = []
        rig.pool.tokenize_later(chat(*turns("ann", 1)), ["127.0.0.1:1"], found.append)
        await eventually_async(lambda: rig.value("tokenized_later_total", result="failed"))
        assert not found


async def test_more_later_calls_than_allowed_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "MAX_LATER", 2)
    async with started() as (rig, server):
        server.gate.clear()
        found: list[Tokens] = []
        for name in ("ann", "bob", "cid"):
            rig.pool.tokenize_later(chat(*turns(name, 1)), [server.address], found.append)
        assert rig.value("tokenized_later_total", result="dropped") == 1
        server.gate.set()
        await eventually_async(lambda: len(found) == 2)
        rig.pool.tokenize_later(chat(*turns("cid", 1)), [server.address], found.append)
        await eventually_async(lambda: len(found) == 3)


async def test_a_wrong_prefix_is_counted_and_not_believed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started() as (rig, server):
        await rig.learn(server, "ann", "bob")
        assert rig.prefix("bob", 4) is not None

        async def another(request: web.Request) -> web.Response:
            body = await request.json()
            return web.json_response({"tokens": [7, *expected(body)], "max_model_len": 0})

        server.tokenize = another
        found: list[Tokens] = []
        rig.pool.tokenize_later(chat(*turns("bob", 4)), [server.address], found.append)
        await eventually_async(lambda: found)
        assert found[0].ids[0] == 7
        assert rig.value("token_prefix_wrong_total") == 1
        assert rig.value("conversation_cache_bytes") == 0
        await rig.learn(server, "cid", "dan", count=4)
        assert rig.prefix("dan", 5) is None
        told = [record.message for record in caplog.records if "known prefixes" in record.message]
        assert len(told) == 1
        assert "ann" not in told[0]


async def test_a_flush_forgets_conversations() -> None:
    async with started() as (rig, server):
        await rig.learn(server, "ann", "bob")
        assert rig.value("conversation_cache_bytes") > 0
        rig.pool.flush()
        assert rig.value("conversation_cache_bytes") == 0
        assert rig.prefix("bob", 4) is None


async def test_the_conversations_of_one_model_can_be_forgotten() -> None:
    async with started() as (rig, server):
        await rig.learn(server, "ann", "bob")
        rig.pool.flush({"other"})
        assert rig.prefix("bob", 4) is not None
        rig.pool.flush({"m", "other"})
        assert rig.value("conversation_cache_bytes") == 0
        assert rig.value("tokenizer_cache_bytes") == 0
        assert rig.prefix("bob", 4) is None


async def test_more_frames_than_are_counted_are_forgotten(monkeypatch: Any) -> None:
    monkeypatch.setattr("aibrix_extproc.tokenizer.known._MAX_FRAMES", 2)
    async with started() as (rig, server):
        for number in range(6):
            body = {"model": "m", "messages": turns("x", 1), "tools": [{"name": number}]}
            prompt = parse_body("/v1/chat/completions", json.dumps(body).encode()).prompt
            assert prompt is not None
            await rig.pool.tokenize(prompt, [server.address], ENOUGH_S)
        rig.pool.flush({"m"})
        assert rig.value("conversation_cache_bytes") == 0


async def test_both_memories_together_stay_within_the_limit() -> None:
    async with started(tokenizer_cache_bytes=40_000) as (rig, server):
        for number in range(12):
            await rig.learn(server, f"n{number}")
            both = rig.value("tokenizer_cache_bytes") + rig.value("conversation_cache_bytes")
            assert 0 < both <= 40_000
