"""Prompts through the pool, against real HTTP servers that behave as vLLM's or break."""

import asyncio
import json
import logging
import socket
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
from aibrix_extproc.tokenizer import client
from aibrix_extproc.tokenizer.pool import REASONS, Reason, TokenizerPool, TokenizerUnavailable
from tests.support import eventually_async, free_port
from tests.unit.tokenizer.tokenizer_server import (
    TokenizerServer,
    expected,
    tokenizer_server,
)

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
CHAT_RENDER = CHAT + "/render"
ENOUGH_S = 10.0


def completion(text: str = "hello", model: str = "m", **fields: Any) -> Prompt:
    body = {"model": model, "prompt": text} | fields
    prompt = parse_body(COMPLETION, json.dumps(body).encode()).prompt
    assert prompt is not None
    return prompt


def chat(text: str = "hello", model: str = "m", **fields: Any) -> Prompt:
    body = {"model": model, "messages": [{"role": "user", "content": text}]} | fields
    prompt = parse_body(CHAT, json.dumps(body).encode()).prompt
    assert prompt is not None
    return prompt


def ids(text: str) -> "array[int]":
    return expected({"prompt": text})


@asynccontextmanager
async def started(metrics: Metrics | None = None, **settings: Any) -> AsyncIterator[TokenizerPool]:
    given = {"tokenizer_render": False} | settings
    pool = TokenizerPool(Settings(**given), metrics or Metrics())
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def failures(metrics: Metrics, reason: Reason) -> float:
    name = "aibrix_extproc_tokenizer_failures_total"
    return counted(metrics, name, reason=reason.value)


async def reason_of(pool: TokenizerPool, prompt: Prompt, *pods: str, deadline_s: float = 5) -> str:
    with pytest.raises(TokenizerUnavailable) as unavailable:
        await pool.tokenize(prompt, pods, deadline_s)
    assert unavailable.value.reason in REASONS
    return unavailable.value.reason


def answer_with(server: TokenizerServer, status: int, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type="application/json")

    server.tokenize = handler


class TestTokens:
    async def test_a_text_becomes_the_servers_ids(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            tokens = await pool.tokenize(completion("abc"), [server.address], ENOUGH_S)
        assert (tokens.ids, tokens.source) == (ids("abc"), "tokenize")

    async def test_a_chat_is_posted_byte_for_byte(self) -> None:
        prompt = chat("caf\u00e9", temperature=0.5, stream=True)
        async with tokenizer_server() as server, started() as pool:
            await pool.tokenize(prompt, [server.address], ENOUGH_S)
        assert server.requests == [("/tokenize", prompt.body)]

    async def test_a_correction_reaches_the_server(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            await pool.tokenize(chat(reasoning_effort="none"), [server.address], ENOUGH_S)
        sent = json.loads(server.requests[0][1])
        assert sent["chat_template_kwargs"]["enable_thinking"] is False

    async def test_tools_are_left_out_where_the_setting_says_so(self) -> None:
        prompt = chat(tools=[{"type": "function"}], tool_choice="none")
        async with (
            tokenizer_server() as server,
            started(exclude_tools_when_tool_choice_none=True) as pool,
        ):
            await pool.tokenize(prompt, [server.address], ENOUGH_S)
        assert "tools" not in json.loads(server.requests[0][1])

    async def test_a_truncated_prompt_keeps_its_last_tokens(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            tokens = await pool.tokenize(
                completion("abcdef", truncate_prompt_tokens=2), [server.address], ENOUGH_S
            )
        assert tokens.ids == ids("ef")

    async def test_token_ids_need_no_server(self) -> None:
        async with started() as pool:
            whole = await pool.tokenize(completion([1, 2, 3]), [], ENOUGH_S)  # type: ignore[arg-type]
            cut = await pool.tokenize(
                completion([1, 2, 3], truncate_prompt_tokens=2),  # type: ignore[arg-type]
                [],
                ENOUGH_S,
            )
        assert (whole.ids, whole.source) == (array("I", [1, 2, 3]), "body")
        assert cut.ids == array("I", [2, 3])

    @pytest.mark.filterwarnings("error::ResourceWarning")
    async def test_a_body_of_several_megabytes_passes_whole(self) -> None:
        text = "x" * 3_000_000
        async with tokenizer_server() as server, started() as pool:
            tokens = await pool.tokenize(completion(text), [server.address], ENOUGH_S)
        assert len(tokens.ids) == 3_000_000

    async def test_connections_are_reused(self) -> None:
        ports = set()

        async def note_port(request: web.Request) -> web.Response:
            assert request.transport is not None
            ports.add(request.transport.get_extra_info("peername")[1])
            return web.json_response({"tokens": [1]})

        async with tokenizer_server() as server, started() as pool:
            server.tokenize = note_port
            for i in range(20):
                await pool.tokenize(completion(f"p{i}"), [server.address], ENOUGH_S)
        assert len(ports) == 1


class TestRender:
    async def test_it_is_preferred_and_its_ids_are_taken_as_they_are(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_render=True) as pool:
            server.render = server.rendered
            prompt = chat("abc", stream=True, truncate_prompt_tokens=2)
            tokens = await pool.tokenize(prompt, [server.address], ENOUGH_S)
            text = await pool.tokenize(completion("abc"), [server.address], ENOUGH_S)
        assert tokens.source == "render"
        assert len(tokens.ids) > 2
        assert text.ids == array("I", [7, *b"abc"])
        assert server.requests[0] == (CHAT_RENDER, prompt.body)
        assert server.paths() == [CHAT_RENDER, COMPLETION + "/render"]

    @pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
    async def test_an_endpoint_without_it_is_remembered(self, status: int) -> None:
        async def not_offered(request: web.Request) -> web.Response:
            return web.json_response({"detail": "Not Found"}, status=status)

        metrics = Metrics()
        async with tokenizer_server() as server, started(metrics, tokenizer_render=True) as pool:
            server.render = not_offered
            for i in range(3):
                tokens = await pool.tokenize(chat(f"{i}"), [server.address], ENOUGH_S)
                assert tokens.source == "tokenize"
        assert server.paths() == [CHAT_RENDER, "/tokenize", "/tokenize", "/tokenize"]
        assert failures(metrics, Reason.NO_RENDER) == 1

    async def test_a_reply_of_another_form_is_remembered_too(self) -> None:
        async def older(request: web.Request) -> web.Response:
            return web.json_response([[{"role": "user"}], [{"prompt_token_ids": [1]}]])

        async with tokenizer_server() as server, started(tokenizer_render=True) as pool:
            server.render = older
            for i in range(2):
                await pool.tokenize(chat(f"{i}"), [server.address], ENOUGH_S)
        assert server.paths() == [CHAT_RENDER, "/tokenize", "/tokenize"]

    @pytest.mark.parametrize("status", [400, 500])
    async def test_a_body_it_cannot_render_is_tokenized_this_once(self, status: int) -> None:
        metrics = Metrics()

        async def refuses(request: web.Request) -> web.Response:
            return server.error(status, '"auto" tool choice requires --enable-auto-tool-choice')

        async with tokenizer_server() as server, started(metrics, tokenizer_render=True) as pool:
            server.render = refuses
            for i in range(2):
                tokens = await pool.tokenize(chat(f"{i}"), [server.address], ENOUGH_S)
                assert tokens.source == "tokenize"
        assert server.paths() == [CHAT_RENDER, "/tokenize"] * 2
        assert failures(metrics, Reason.RENDER_FAILED) == 2

    async def test_a_model_it_does_not_know_moves_on_to_another_endpoint(self) -> None:
        async with (
            tokenizer_server("base") as first,
            tokenizer_server("base", "lora") as pod,
            started(tokenizer_render=True, tokenizer_endpoint=f"http://{first.address}") as pool,
        ):
            first.render, pod.render = first.rendered, pod.rendered
            tokens = await pool.tokenize(completion("abc", "lora"), [pod.address], ENOUGH_S)
        assert tokens.source == "render"
        assert (len(first.requests), len(pod.requests)) == (1, 1)

    async def test_a_reply_too_large_to_read_is_tokenized_this_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "REPLY_BASE_BYTES", 10_000)

        async def with_media(request: web.Request) -> web.Response:
            features = {"kwargs_data": "A" * 100_000}
            return web.json_response({"token_ids": [1], "features": features})

        async with tokenizer_server() as server, started(tokenizer_render=True) as pool:
            server.render = with_media
            tokens = await pool.tokenize(chat(), [server.address], ENOUGH_S)
        assert (tokens.source, server.paths()) == ("tokenize", [CHAT_RENDER, "/tokenize"])

    async def test_several_prompts_are_not_rendered_for_the_first_ones_sake(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_render=True) as pool:
            server.render = server.rendered
            prompt = completion(["abc", "def"])  # type: ignore[arg-type]
            tokens = await pool.tokenize(prompt, [server.address], ENOUGH_S)
        assert (tokens.ids, server.paths()) == (ids("abc"), ["/tokenize"])

    async def test_a_setting_switches_it_off(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_render=False) as pool:
            server.render = server.rendered
            await pool.tokenize(chat(), [server.address], ENOUGH_S)
        assert server.paths() == ["/tokenize"]


class TestEndpoints:
    async def test_the_configured_endpoint_is_asked_before_any_pod(self) -> None:
        async with (
            tokenizer_server() as first,
            tokenizer_server() as pod,
            started(tokenizer_endpoint=f"http://{first.address}") as pool,
        ):
            for i in range(3):
                await pool.tokenize(completion(f"{i}"), [pod.address], ENOUGH_S)
        assert (len(first.requests), len(pod.requests)) == (3, 0)

    async def test_where_it_does_not_know_the_model_a_pod_is_asked_and_that_is_remembered(
        self,
    ) -> None:
        async with (
            tokenizer_server("base") as first,
            tokenizer_server("base", "lora") as pod,
            started(tokenizer_endpoint=f"http://{first.address}") as pool,
        ):
            for i in range(3):
                await pool.tokenize(completion(f"{i}", "lora"), [pod.address], ENOUGH_S)
            await pool.tokenize(completion("x", "base"), [pod.address], ENOUGH_S)
        assert (len(first.requests), len(pod.requests)) == (2, 3)

    async def test_pods_take_turns(self) -> None:
        async with tokenizer_server() as a, tokenizer_server() as b, started() as pool:
            for i in range(10):
                await pool.tokenize(completion(f"{i}"), [a.address, b.address], ENOUGH_S)
        assert (len(a.requests), len(b.requests)) == (5, 5)

    async def test_a_pod_that_hangs_is_passed_by_while_others_are_idle(self) -> None:
        async with tokenizer_server() as hung, tokenizer_server() as well, started() as pool:
            hung.gate.clear()
            stuck = asyncio.create_task(pool.tokenize(completion("x"), [hung.address], ENOUGH_S))
            await eventually_async(lambda: hung.requests)
            for i in range(6):
                await pool.tokenize(completion(f"{i}"), [hung.address, well.address], ENOUGH_S)
            assert (len(hung.requests), len(well.requests)) == (1, 6)
            hung.gate.set()
            await stuck

    async def test_nobody_to_ask_is_said(self) -> None:
        async with started() as pool:
            assert await reason_of(pool, completion()) == "no_endpoint"

    async def test_a_model_that_nobody_knows_is_said_and_not_asked_for_again(self) -> None:
        metrics = Metrics()
        async with tokenizer_server("base") as server, started(metrics) as pool:
            for i in range(3):
                reason = await reason_of(pool, completion(f"{i}", "gone"), server.address)
                assert reason == "model_unknown"
        assert len(server.requests) == 1
        assert failures(metrics, Reason.MODEL_UNKNOWN) == 3

    async def test_a_refused_connection_moves_on_to_another_pod(self) -> None:
        dead = f"127.0.0.1:{free_port()}"
        async with tokenizer_server() as server, started() as pool:
            for i in range(4):
                tokens = await pool.tokenize(completion(f"{i}"), [dead, server.address], ENOUGH_S)
                assert tokens.ids == ids(f"{i}")

    async def test_no_more_than_three_endpoints_fail_one_prompt(self) -> None:
        metrics = Metrics()
        dead = [f"127.0.0.1:{free_port()}" for _ in range(6)]
        async with started(metrics) as pool:
            assert await reason_of(pool, completion(), *dead) == "refused"
        assert failures(metrics, Reason.REFUSED) == 3

    async def test_an_address_that_is_no_url_is_a_failure_like_any(self) -> None:
        async with started() as pool:
            assert await reason_of(pool, completion(), "host:port:x") == "refused"


class TestBrokenServers:
    @pytest.mark.parametrize(
        ("status", "body", "reason"),
        [
            (500, b'{"error":{"message":"boom"}}', "status"),
            (503, b"", "status"),
            (302, b"", "status"),
            (401, b'{"error":"Unauthorized"}', "status"),
            (404, b'{"detail":"Not Found"}', "status"),
            (200, b'{"tokens": [1,', "garbage"),
            (200, b"<html>hello</html>", "garbage"),
            (200, b'{"tokens": [4294967296]}', "garbage"),
            (200, b"", "garbage"),
            (400, b'{"error":{"message":"too long"}}', "rejected"),
            (422, b"{}", "rejected"),
        ],
    )
    async def test_each_wrong_answer_has_its_reason(
        self, status: int, body: bytes, reason: str
    ) -> None:
        metrics = Metrics()
        async with tokenizer_server() as server, started(metrics) as pool:
            answer_with(server, status, body)
            assert await reason_of(pool, completion(), server.address) == reason
        assert failures(metrics, Reason(reason)) == 1
        assert len(server.requests) == 1

    async def test_a_wrong_answer_moves_on_to_another_pod(self) -> None:
        async with tokenizer_server() as broken, tokenizer_server() as well, started() as pool:
            answer_with(broken, 500, b"")
            for i in range(4):
                pods = [broken.address, well.address]
                assert (await pool.tokenize(completion(f"{i}"), pods, ENOUGH_S)).ids == ids(f"{i}")

    async def test_a_redirect_is_not_followed(self) -> None:
        async def elsewhere(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": "/elsewhere"})

        async with tokenizer_server() as server, started() as pool:
            server.tokenize = elsewhere
            assert await reason_of(pool, completion(), server.address) == "status"
        assert server.paths() == ["/tokenize"]

    async def test_a_rejected_body_is_not_offered_to_another_pod(self) -> None:
        async with tokenizer_server() as a, tokenizer_server() as b, started() as pool:
            for server in (a, b):
                answer_with(server, 400, b"{}")
            assert await reason_of(pool, completion(), a.address, b.address) == "rejected"
        assert len(a.requests) + len(b.requests) == 1

    async def test_a_server_that_hangs_times_out_and_another_is_asked(self) -> None:
        metrics = Metrics()
        async with (
            tokenizer_server() as hung,
            tokenizer_server() as well,
            started(
                metrics, tokenizer_timeout_s=0.1, tokenizer_endpoint=f"http://{hung.address}"
            ) as pool,
        ):
            hung.gate.clear()
            tokens = await pool.tokenize(completion(), [well.address], ENOUGH_S)
        assert tokens.ids == ids("hello")
        assert failures(metrics, Reason.TIMEOUT) == 1

    async def test_an_address_that_never_answers_a_connection_times_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.05)
        with socket.socket() as full:  # a full backlog leaves further connections unanswered
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            address = f"127.0.0.1:{full.getsockname()[1]}"
            fillers = [socket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            async with started() as pool:
                assert await reason_of(pool, completion(), address) == "timeout"
            for filler in fillers:
                filler.close()

    async def test_a_connection_closed_in_the_middle_of_a_reply_is_a_failure(self) -> None:
        async def cut(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"tokens": [1,')
            assert request.transport is not None
            request.transport.close()
            return response

        async with tokenizer_server() as server, started() as pool:
            server.tokenize = cut
            assert await reason_of(pool, completion(), server.address) == "disconnected"

    async def test_a_connection_closed_before_any_reply_is_tried_once_more(self) -> None:
        async def close_first(request: web.Request) -> web.StreamResponse:
            if len(server.requests) == 1:
                assert request.transport is not None
                request.transport.close()
            return web.json_response({"tokens": [5]})

        async with tokenizer_server() as server, started() as pool:
            server.tokenize = close_first
            tokens = await pool.tokenize(completion(), [server.address], ENOUGH_S)
        assert (tokens.ids, len(server.requests)) == (array("I", [5]), 2)

    async def test_a_huge_reply_is_not_read_to_its_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "REPLY_BASE_BYTES", 100_000)
        written = 0

        async def endless(request: web.Request) -> web.StreamResponse:
            nonlocal written
            response = web.StreamResponse()
            await response.prepare(request)
            while written < 50_000_000:
                await response.write(b" " * 65536)
                written += 65536
            return response

        async with tokenizer_server() as server, started() as pool:
            server.tokenize = endless
            assert await reason_of(pool, completion(), server.address) == "too_large"
        assert written < 50_000_000


class TestBreaker:
    async def test_it_opens_after_failures_in_a_row_and_closes_by_one_trial(self) -> None:
        metrics = Metrics()
        settings = {"tokenizer_breaker_failures": 3, "tokenizer_breaker_cooldown_s": 0.1}
        gauge = "aibrix_extproc_tokenizer_breakers_open"
        async with tokenizer_server() as server, started(metrics, **settings) as pool:
            healthy = server.tokenize
            answer_with(server, 500, b"")
            for i in range(3):
                assert await reason_of(pool, completion(f"{i}"), server.address) == "status"
            assert await reason_of(pool, completion("x"), server.address) == "breaker_open"
            assert len(server.requests) == 3
            assert counted(metrics, gauge) == 1

            server.tokenize = healthy
            server.gate.clear()
            trial = asyncio.create_task(eventually_tokens(pool, server.address))
            await eventually_async(lambda: len(server.requests) == 4)
            assert await reason_of(pool, completion("y"), server.address) == "breaker_open"
            server.gate.set()
            assert (await trial).source in ("tokenize", "shared")
            await pool.tokenize(completion("z"), [server.address], ENOUGH_S)
        assert counted(metrics, gauge) == 0
        assert len(server.requests) == 5

    async def test_a_trial_whose_client_left_is_followed_by_another(self) -> None:
        settings = {"tokenizer_breaker_failures": 1, "tokenizer_breaker_cooldown_s": 0.05}
        async with tokenizer_server() as server, started(**settings) as pool:
            healthy = server.tokenize
            answer_with(server, 500, b"")
            await reason_of(pool, completion(), server.address)
            server.tokenize = healthy
            server.gate.clear()
            trial = asyncio.create_task(eventually_tokens(pool, server.address))
            await eventually_async(lambda: len(server.requests) == 2)
            trial.cancel()
            await asyncio.wait([trial])
            server.gate.set()
            assert (await eventually_tokens(pool, server.address)).source == "tokenize"

    async def test_rejected_bodies_never_open_it(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_breaker_failures=1) as pool:
            answer_with(server, 400, b"{}")
            for i in range(3):
                assert await reason_of(pool, completion(f"{i}"), server.address) == "rejected"

    async def test_an_open_breaker_leaves_the_work_to_the_other_pods(self) -> None:
        async with (
            tokenizer_server() as broken,
            tokenizer_server() as well,
            started(tokenizer_breaker_failures=2, tokenizer_breaker_cooldown_s=60) as pool,
        ):
            answer_with(broken, 500, b"")
            for i in range(20):
                pods = [broken.address, well.address]
                await pool.tokenize(completion(f"{i}"), pods, ENOUGH_S)
        assert (len(broken.requests), len(well.requests)) == (2, 20)

    async def test_a_lasting_failure_is_told_once_per_change(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "aibrix_extproc.tokenizer")
        async with (
            tokenizer_server() as server,
            started(tokenizer_breaker_failures=3, tokenizer_breaker_cooldown_s=0.05) as pool,
        ):
            healthy = server.tokenize
            answer_with(server, 500, b"a secret prompt")
            for i in range(10):
                await reason_of(pool, completion(f"{i}"), server.address)
            server.tokenize = healthy
            await eventually_tokens(pool, server.address)
        states = [line.split(" → ")[1].split(" (")[0] for line in caplog.messages]
        assert states == ["failing", "left alone for a while", "ok"]
        assert "secret" not in caplog.text


async def eventually_tokens(pool: TokenizerPool, address: str) -> Any:
    """Tokens as soon as the breaker lets a trial through."""

    async def attempt() -> Any:
        try:
            return await pool.tokenize(completion("trial"), [address], ENOUGH_S)
        except TokenizerUnavailable:
            return None

    return await eventually_async(attempt)


class TestCache:
    async def test_a_second_equal_prompt_makes_no_call(self) -> None:
        metrics = Metrics()
        async with tokenizer_server() as server, started(metrics) as pool:
            first = await pool.tokenize(chat(max_tokens=1), [server.address], ENOUGH_S)
            again = await pool.tokenize(chat(max_tokens=2, stream=True), [], ENOUGH_S)
        assert (first.source, again.source, len(server.requests)) == ("tokenize", "cache", 1)
        assert again.ids == first.ids
        name = "aibrix_extproc_tokenizer_cache_total"
        assert counted(metrics, name, result="hit") == 1
        assert counted(metrics, name, result="miss") == 1
        assert counted(metrics, "aibrix_extproc_tokenizer_cache_bytes") > 0

    async def test_cached_answers_without_a_call(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            assert pool.cached(completion()) is None
            await pool.tokenize(completion(), [server.address], ENOUGH_S)
            found = pool.cached(completion())
        assert found is not None
        assert (found.ids, found.source) == (ids("hello"), "cache")

    async def test_its_size_stays_within_the_limit(self) -> None:
        metrics = Metrics()
        async with (
            tokenizer_server() as server,
            started(metrics, tokenizer_cache_bytes=4000) as pool,
        ):
            for i in range(50):
                await pool.tokenize(completion(f"{i}" * 50), [server.address], ENOUGH_S)
                assert counted(metrics, "aibrix_extproc_tokenizer_cache_bytes") <= 4000
            assert pool.cached(completion("49" * 50)) is not None
            assert pool.cached(completion("0" * 50)) is None

    async def test_zero_bytes_switch_it_off(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_cache_bytes=0) as pool:
            for _ in range(2):
                await pool.tokenize(completion(), [server.address], ENOUGH_S)
        assert len(server.requests) == 2

    async def test_flushing_forgets_and_keeps_no_call_that_is_under_way(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            await pool.tokenize(completion("old"), [server.address], ENOUGH_S)
            server.gate.clear()
            call = asyncio.create_task(pool.tokenize(completion("new"), [server.address], ENOUGH_S))
            await eventually_async(lambda: len(server.requests) == 2)
            pool.flush()
            server.gate.set()
            assert (await call).ids == ids("new")
            assert pool.cached(completion("old")) is None
            assert pool.cached(completion("new")) is None


class TestSharing:
    async def test_equal_prompts_share_one_call(self) -> None:
        metrics = Metrics()
        async with tokenizer_server() as server, started(metrics) as pool:
            server.gate.clear()
            calls = [
                asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
                for _ in range(10)
            ]
            await eventually_async(lambda: server.requests)
            server.gate.set()
            results = await asyncio.gather(*calls)
        assert len(server.requests) == 1
        assert sorted(result.source for result in results) == ["shared"] * 9 + ["tokenize"]
        assert all(result.ids == ids("hello") for result in results)
        assert counted(metrics, "aibrix_extproc_tokenizer_cache_total", result="shared") == 9

    async def test_a_cancelled_waiter_takes_nothing_from_the_others(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            server.gate.clear()
            first, second = (
                asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
                for _ in range(2)
            )
            await eventually_async(lambda: server.requests)
            first.cancel()
            await asyncio.wait([first])
            server.gate.set()
            assert (await second).ids == ids("hello")
        assert first.cancelled()
        assert (len(server.requests), server.cancelled) == (1, 0)

    async def test_when_every_waiter_is_cancelled_so_is_the_call(self) -> None:
        async with tokenizer_server() as server, started(tokenizer_timeout_s=60) as pool:
            server.gate.clear()
            calls = [
                asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
                for _ in range(3)
            ]
            await eventually_async(lambda: server.requests)
            for call in calls:
                call.cancel()
            await eventually_async(lambda: server.cancelled == 1)
            server.gate.set()
            again = await pool.tokenize(completion(), [server.address], ENOUGH_S)
        assert again.source == "tokenize"

    async def test_a_call_past_its_deadline_goes_on_and_fills_the_cache(self) -> None:
        metrics = Metrics()
        async with tokenizer_server() as server, started(metrics) as pool:
            server.gate.clear()
            reason = await reason_of(pool, completion(), server.address, deadline_s=0.05)
            assert reason == "deadline"
            assert pool.cached(completion()) is None
            server.gate.set()
            found = await eventually_async(lambda: pool.cached(completion()))
        assert found.ids == ids("hello")
        assert len(server.requests) == 1
        assert failures(metrics, Reason.DEADLINE) == 1

    async def test_each_waiter_has_a_deadline_of_its_own(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            server.gate.clear()
            patient = asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
            await eventually_async(lambda: server.requests)
            reason = await reason_of(pool, completion(), server.address, deadline_s=0.05)
            assert reason == "deadline"
            server.gate.set()
            assert (await patient).ids == ids("hello")

    async def test_one_who_left_by_its_deadline_keeps_the_call_from_being_cancelled(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            server.gate.clear()
            gone = asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
            await eventually_async(lambda: server.requests)
            await reason_of(pool, completion(), server.address, deadline_s=0.05)
            gone.cancel()
            await asyncio.wait([gone])
            server.gate.set()
            await eventually_async(lambda: pool.cached(completion()))
        assert server.cancelled == 0

    async def test_after_the_deadline_no_other_endpoint_is_tried(self) -> None:
        async with (
            tokenizer_server() as hung,
            tokenizer_server() as well,
            started(tokenizer_timeout_s=0.15, tokenizer_endpoint=f"http://{hung.address}") as pool,
        ):
            hung.gate.clear()
            reason = await reason_of(pool, completion(), well.address, deadline_s=0.05)
            assert reason == "deadline"
            await eventually_async(lambda: hung.cancelled == 1)
            await reason_of(pool, completion("x"), well.address, deadline_s=0.01)
        assert well.requests == []

    async def test_no_time_left_begins_no_call(self) -> None:
        async with tokenizer_server() as server, started() as pool:
            assert await reason_of(pool, completion(), server.address, deadline_s=0) == "deadline"
        assert server.requests == []

    @pytest.mark.parametrize("bound", [{"max_streams": 2}, {"max_inflight_bytes": 100}])
    async def test_calls_under_way_are_bounded(self, bound: dict[str, int]) -> None:
        async with tokenizer_server() as server, started(**bound) as pool:
            server.gate.clear()
            calls = [
                asyncio.create_task(
                    pool.tokenize(completion("x" * 10 + f"{i}"), [server.address], ENOUGH_S)
                )
                for i in range(2)
            ]
            await eventually_async(lambda: len(server.requests) == 2)
            assert await reason_of(pool, completion("x" * 10), server.address) == "too_many"
            server.gate.set()
            await asyncio.gather(*calls)
            await pool.tokenize(completion("x" * 10), [server.address], ENOUGH_S)

    async def test_closing_tells_those_who_wait(self) -> None:
        async with tokenizer_server() as server:
            async with started() as pool:
                server.gate.clear()
                call = asyncio.create_task(pool.tokenize(completion(), [server.address], ENOUGH_S))
                await eventually_async(lambda: server.requests)
            with pytest.raises(TokenizerUnavailable) as unavailable:
                await call
            assert unavailable.value.reason is Reason.CLOSED
            assert await reason_of(pool, completion(), server.address) == "closed"
