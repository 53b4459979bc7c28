"""Prompts through the pool, against real HTTP servers that behave as vLLM's or break."""

import asyncio
import json
from array import array

import pytest
from aiohttp import web

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer import client
from aibrix_extproc.tokenizer.pool import Reason
from tests.support import eventually_async, free_port
from tests.unit.tokenizer.pool_rig import (
    CHAT_RENDER,
    COMPLETION,
    ENOUGH_S,
    chat,
    completion,
    failures,
    ids,
    reason_of,
    started,
)
from tests.unit.tokenizer.tokenizer_server import tokenizer_server


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
