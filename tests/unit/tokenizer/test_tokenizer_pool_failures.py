"""The pool against servers that break, and how it leaves them alone."""

import asyncio
import logging
import socket
from array import array
from typing import Any

import pytest
from aiohttp import web

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer import client
from aibrix_extproc.tokenizer.pool import Reason, TokenizerPool, TokenizerUnavailable
from tests.support import eventually_async
from tests.unit.tokenizer.pool_rig import (
    ENOUGH_S,
    answer_with,
    completion,
    counted,
    failures,
    ids,
    reason_of,
    started,
)
from tests.unit.tokenizer.tokenizer_server import tokenizer_server


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
