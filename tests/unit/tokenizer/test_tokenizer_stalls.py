"""An endpoint that takes calls and answers none: it is found out early, and costs little."""

import asyncio
import logging
import socket
import time
from array import array

import pytest

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer.breaker import Breaker
from aibrix_extproc.tokenizer.endpoints import Endpoint
from aibrix_extproc.tokenizer.pool import Reason, TokenizerPool
from aibrix_extproc.tokenizer.race import Race
from aibrix_extproc.tokenizer.types import Tokens
from tests.support import eventually_async
from tests.unit.tokenizer.pool_rig import ENOUGH_S, completion, failures, ids, reason_of, started
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, tokenizer_server

STALL_S = 0.05
SOON = {"decision_timeout_s": 4 * STALL_S}
OPEN = "aibrix_extproc_tokenizer_breakers_open"


def first(server: TokenizerServer) -> dict[str, str]:
    return {"tokenizer_endpoint": f"http://{server.address}"}


async def sent_to(pool: TokenizerPool, server: TokenizerServer, pod: TokenizerServer) -> bool:
    """Whether a new prompt is sent to `server`, though a pod may be asked too."""
    before = len(server.requests)
    text = f"{before} {len(pod.requests)}"
    await pool.tokenize(completion(text), [pod.address], ENOUGH_S)
    return len(server.requests) > before


async def test_another_is_asked_beside_one_that_hangs_and_the_next_prompts_pass_it_by() -> None:
    metrics = Metrics()
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(metrics, **SOON, **first(hung)) as pool,
    ):
        hung.gate.clear()
        tokens = await pool.tokenize(completion(), [pod.address], ENOUGH_S)
        assert tokens.ids == ids("hello")
        for number in range(5):
            assert not await sent_to(pool, hung, pod), number
        assert failures(metrics, Reason.STALLED) == 1
        assert metrics.registry.get_sample_value(OPEN) == 1


async def test_its_late_answer_ends_the_suspicion() -> None:
    metrics = Metrics()
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(metrics, **SOON, **first(hung), tokenizer_breaker_cooldown_s=60) as pool,
    ):
        hung.gate.clear()
        await pool.tokenize(completion(), [pod.address], ENOUGH_S)
        assert not await sent_to(pool, hung, pod)
        hung.gate.set()
        await eventually_async(lambda: metrics.registry.get_sample_value(OPEN) == 0)
        assert await sent_to(pool, hung, pod)


async def test_where_there_is_no_other_prompts_are_told_at_once_that_it_is_left_alone() -> None:
    async with tokenizer_server() as hung, started(**SOON) as pool:
        hung.gate.clear()
        assert await reason_of(pool, completion(), hung.address, deadline_s=0.2) == "deadline"
        for number in range(5):
            reason = await reason_of(pool, completion(f"{number}"), hung.address)
            assert reason == "breaker_open"
        assert len(hung.requests) == 1


async def test_a_trial_that_hangs_too_leaves_it_alone_again() -> None:
    metrics = Metrics()
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(metrics, **SOON, **first(hung), tokenizer_breaker_cooldown_s=0.1) as pool,
    ):
        hung.gate.clear()
        await pool.tokenize(completion(), [pod.address], ENOUGH_S)
        await eventually_async(lambda: sent_to(pool, hung, pod))
        assert not await sent_to(pool, hung, pod)
        assert failures(metrics, Reason.STALLED) == 2


def endpoint() -> Endpoint:
    return Endpoint("http://x", Breaker(failures=5, cooldown_s=5))


def test_silence_since_a_call_began_is_a_standstill() -> None:
    assert not endpoint().stands_still(began=10, now=10.2, stall_s=0.25, most_s=1)
    assert endpoint().stands_still(began=10, now=10.25, stall_s=0.25, most_s=1)


def test_one_that_answers_others_meanwhile_does_not_stand_still() -> None:
    busy = endpoint()
    busy.answered(began=19.9, now=20)
    assert not busy.stands_still(began=10, now=20.2, stall_s=0.25, most_s=1)
    assert busy.stands_still(began=10, now=20.25, stall_s=0.25, most_s=1)


def test_one_that_is_always_slow_is_waited_for_twice_as_long_as_it_takes() -> None:
    slow = endpoint()
    slow.answered(began=0, now=0.4)
    assert not slow.stands_still(began=10, now=10.7, stall_s=0.25, most_s=1)
    assert slow.stands_still(began=10, now=10.8, stall_s=0.25, most_s=1)


def test_but_not_for_longer_than_a_decision_has() -> None:
    slow = endpoint()
    slow.answered(began=0, now=4)
    assert slow.stands_still(began=10, now=11, stall_s=0.25, most_s=1)


def test_a_long_call_is_forgotten_after_some_short_ones() -> None:
    once = endpoint()
    once.answered(began=0, now=0.4)
    for number in range(20):
        once.answered(began=1 + number, now=1.01 + number)
    assert once.stands_still(began=30, now=30.25, stall_s=0.25, most_s=1)


async def test_of_many_calls_that_hang_one_goes_on_as_a_witness() -> None:
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(**SOON, **first(hung)) as pool,
    ):
        hung.gate.clear()
        prompts = [completion(f"{number}") for number in range(8)]
        await asyncio.gather(*(pool.tokenize(p, [pod.address], ENOUGH_S) for p in prompts))
        assert len(hung.requests) == 8
        await eventually_async(lambda: hung.cancelled == 7)
        await pool.close()
        await eventually_async(lambda: hung.cancelled == 8)


async def test_for_a_prompt_that_nobody_waits_for_no_other_is_asked() -> None:
    metrics = Metrics()
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(metrics, **SOON, **first(hung)) as pool,
    ):
        hung.gate.clear()
        learned: list[Tokens] = []
        pool.tokenize_later(completion(), [pod.address], learned.append)
        await eventually_async(lambda: failures(metrics, Reason.STALLED) == 1)
        hung.gate.set()
        await eventually_async(lambda: learned)
        assert not pod.requests


async def test_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        tokenizer_server() as hung,
        tokenizer_server() as pod,
        started(**SOON, **first(hung), tokenizer_breaker_cooldown_s=0.06) as pool,
    ):
        hung.gate.clear()
        for number in range(3):
            await eventually_async(lambda: sent_to(pool, hung, pod))
            assert len(hung.requests) == number + 1
    lines = [r.getMessage() for r in caplog.records if hung.address in r.getMessage()]
    assert len(lines) == 1
    assert "stalled" in lines[0]


async def test_a_standstill_of_our_own_loop_blames_nobody() -> None:
    """An answer that waits in the socket, because this process was busy, was given in time."""
    here, there = socket.socketpair()
    here.setblocking(False)

    async def attempt() -> Tokens:
        await asyncio.get_running_loop().sock_recv(here, 1)
        return Tokens(array("I", [5]), "tokenize")

    with here, there:
        race = Race(4 * STALL_S)
        race.enter(endpoint(), attempt())
        ended = asyncio.create_task(race.next())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        there.send(b"x")
        time.sleep(3 * STALL_S)  # noqa: ASYNC251 - the standstill
        assert isinstance(await ended, Tokens)
