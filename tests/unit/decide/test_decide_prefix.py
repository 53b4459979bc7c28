"""Decisions by a known prefix: made before the tokenizer answers, honest, and learned from."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.fakes.engine import FakeEngine
from tests.support import eventually_async
from tests.unit.decide.decide_rig import Rig, engines, plain_pod, pod_of, request, running
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, tokenizer_server

CHAT = "/v1/chat/completions"
LONG = "a long text of which much can be known " * 10 + "all"


def body_of(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {"model": "tiny", "messages": messages, "max_tokens": 20}


def turns(name: str, count: int) -> list[dict[str, str]]:
    """A conversation up to its turn `count`, which ends with the user's message."""
    messages = []
    for turn in range(count):
        messages.append({"role": "user", "content": f"{LONG} {name} {turn}"})
        messages.append({"role": "assistant", "content": f"to {name} {turn}"})
    return messages[:-1]


def turn_of(name: str, count: int) -> RouteRequest:
    return request(body_of(turns(name, count)), CHAT)


async def decided(rig: Rig, name: str, count: int) -> Picked:
    outcome = await rig.decider.decide(turn_of(name, count))
    assert isinstance(outcome, Picked)
    rig.decider.release(outcome.ticket)
    return outcome


@contextlib.asynccontextmanager
async def learned(**settings: Any) -> AsyncIterator[tuple[Rig, TokenizerServer]]:
    """Two pods without events, a tokenizer of its own, and two conversations of three turns."""
    async with (
        tokenizer_server("tiny") as server,
        running(
            [plain_pod("a"), plain_pod("bb")],
            tokenizer_endpoint=f"http://{server.address}",
            tokenizer_render=False,
            **settings,
        ) as rig,
    ):
        for name in ("ann", "bob"):
            for count in range(1, 4):
                await decided(rig, name, count)
                await eventually_async(lambda: later_done(rig) == at_once(rig))
        yield rig, server


def at_once(rig: Rig) -> float:
    return rig.value("aibrix_extproc_token_prefix_total", result="enough")


def later_done(rig: Rig) -> float:
    return rig.value("aibrix_extproc_tokenized_later_total", result="done")


async def test_a_turn_is_decided_before_the_tokenizer_answers_and_goes_where_the_last_went() -> (
    None
):
    async with learned() as (rig, server):
        before = await decided(rig, "bob", 3)
        server.gate.clear()
        picked = await decided(rig, "bob", 4)
        assert picked.decision.chosen.candidate == before.decision.chosen.candidate
        assert 0 < picked.matched_tokens < before.prompt_tokens
        assert picked.prompt_tokens > before.prompt_tokens


async def test_what_is_tokenized_later_is_predicted_of_the_chosen_pod_and_counted() -> None:
    async with learned() as (rig, server):
        server.gate.clear()
        counted = rig.value("aibrix_extproc_prompt_tokens_total", model="tiny")
        picked = await decided(rig, "bob", 4)
        promised = len(rig.predictions)
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == counted
        done = later_done(rig)
        server.gate.set()
        await eventually_async(lambda: later_done(rig) > done)
        whole = len(json.dumps(turns("bob", 4)))
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == counted + whole
        assert len(rig.predictions) > promised
        again = await decided(rig, "bob", 4)
        assert again.decision.chosen.candidate == picked.decision.chosen.candidate
        assert again.matched_tokens == (whole - 1) // 16 * 16


async def test_a_pod_that_went_meanwhile_is_promised_nothing() -> None:
    async with learned() as (rig, server):
        server.gate.clear()
        picked = await decided(rig, "bob", 4)
        done = later_done(rig)
        rig.registry.remove(picked.decision.chosen.candidate.pod.key)
        promised = len(rig.predictions)
        server.gate.set()
        await eventually_async(lambda: later_done(rig) > done)
        assert len(rig.predictions) == promised


async def test_explain_says_that_a_prefix_decided_and_calls_nobody() -> None:
    async with learned() as (rig, server):
        asked = len(server.requests)
        enough = at_once(rig)
        told = await rig.decider.explain(turn_of("bob", 4))
        assert told["tokens_known"] == "prefix"
        assert told["fallback"] is None
        assert len(server.requests) == asked
        assert at_once(rig) == enough
        json.dumps(told)
        assert (await rig.decider.explain(turn_of("bob", 3)))["tokens_known"] is True


async def test_off_every_turn_waits() -> None:
    async with learned(conversation_cache=False, decision_timeout_s=0.05) as (rig, server):
        server.gate.clear()
        picked = await decided(rig, "bob", 4)
        assert picked.matched_tokens == 0
        assert rig.value("aibrix_extproc_fallback_total", reason="deadline") == 1


async def ask(engine: FakeEngine, body: dict[str, Any]) -> tuple[str, int]:
    """Send a chat straight to an engine; its answer, and the tokens that it reused."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{engine.address}{CHAT}", json=body) as reply,
    ):
        answer = await reply.json()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["message"]["content"], int(cached)


async def test_what_counts_as_matched_is_never_more_than_the_engine_reuses() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        by_address = {engine.address: engine for engine in two}
        for name in ("ann", "bob", "cid"):
            messages: list[dict[str, str]] = []
            for turn in range(6):
                messages.append({"role": "user", "content": f"{LONG} {name} {turn}"})
                stored = rig.value("aibrix_kv_blocks_stored_total")
                outcome = await rig.decider.decide(request(body_of(messages), CHAT))
                assert isinstance(outcome, Picked)
                engine = by_address[outcome.decision.chosen.candidate.pod.address]
                text, cached = await ask(engine, body_of(messages))
                rig.decider.release(outcome.ticket)
                assert outcome.matched_tokens <= cached
                messages.append({"role": "assistant", "content": text})
                await eventually_async(
                    lambda: rig.value("aibrix_kv_blocks_stored_total") > stored  # noqa: B023
                )
        assert at_once(rig) >= 8
        assert rig.value("aibrix_extproc_token_prefix_wrong_total") == 0
