"""What the pool asks once: its cache, and equal prompts at one moment."""

import asyncio

import pytest

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer.pool import Reason, TokenizerUnavailable
from tests.support import eventually_async
from tests.unit.tokenizer.pool_rig import (
    ENOUGH_S,
    chat,
    completion,
    counted,
    failures,
    ids,
    reason_of,
    started,
)
from tests.unit.tokenizer.tokenizer_server import tokenizer_server


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
