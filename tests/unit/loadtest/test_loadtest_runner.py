"""When requests are sent, and what counts as late."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aibrix_extproc.loadtest.client import Outcome
from aibrix_extproc.loadtest.runner import INTERRUPTED, NOT_SENT, OpenLoop
from aibrix_extproc.loadtest.talk import Style
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn
from tests.support import eventually_async


def turn(think_s: float = 0.0, before: tuple[Piece, ...] = ()) -> Turn:
    return Turn((*before, Piece(f"p{len(before)}", 30)), Piece("a", 2), think_s)


def one(start_s: float, name: str = "s") -> Session:
    return Session(start_s, (turn(),), name)


def two_turns(think_s: float) -> Session:
    first = turn()
    return Session(0.0, (first, turn(think_s, (*first.prompt, first.answer))), "talk")


class Upstream:
    """Answers once it is let; keeps what was sent and when."""

    def __init__(self, *, open_at_once: bool = True, error: str | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        self.times_s: list[float] = []
        self.let = asyncio.Event()
        self.error = error
        if open_at_once:
            self.let.set()

    async def send(self, body: bytes, path: str, headers: Mapping[str, str]) -> Outcome:
        now_s = time.perf_counter()
        self.bodies.append(body)
        self.headers.append(headers)
        self.times_s.append(now_s)
        await self.let.wait()
        took_s = time.perf_counter() - now_s
        return Outcome(error=self.error, sent_s=now_s, duration_s=took_s, answer="an answer")


def loop_of(upstream: Upstream, max_open: int = 100) -> OpenLoop:
    return OpenLoop(upstream.send, Style("m"), max_open)


async def test_sessions_begin_at_their_times_while_nothing_is_answered() -> None:
    upstream = Upstream(open_at_once=False)
    loop = loop_of(upstream)
    run = asyncio.create_task(loop.run([one(0.0), one(0.05), one(0.1)]))
    await eventually_async(lambda: len(upstream.bodies) == 3)
    assert loop.open == 3
    assert not loop.sent
    upstream.let.set()
    await run
    assert [sent.intended_s for sent in loop.sent] == [0.0, 0.05, 0.1]
    for sent, at_s in zip(loop.sent, upstream.times_s, strict=True):
        assert sent.sent_s >= sent.intended_s
        assert at_s == sent.outcome.sent_s


async def test_a_later_turn_is_due_its_think_time_after_the_answer_and_holds_it() -> None:
    upstream = Upstream()
    loop = loop_of(upstream)
    await loop.run([two_turns(think_s=0.06)])
    first, second = loop.sent
    assert (first.turn, second.turn) == (0, 1)
    ended_s = first.sent_s + first.outcome.duration_s
    assert 0.06 <= second.intended_s - ended_s < 0.5
    assert b'"assistant","content":"an answer"' in upstream.bodies[1]


async def test_a_failed_turn_does_not_end_its_session() -> None:
    upstream = Upstream(error="HTTP 500")
    loop = loop_of(upstream)
    await loop.run([two_turns(0.0)])
    assert [sent.outcome.error for sent in loop.sent] == ["HTTP 500", "HTTP 500"]


async def test_a_request_names_its_session() -> None:
    upstream = Upstream()
    await loop_of(upstream).run([one(0.0, "unique-1-7"), one(0.0, "")])
    assert upstream.headers == [{"x-session-id": "unique-1-7"}, {}]


async def test_what_is_due_at_one_moment_leaves_in_the_order_of_the_workload() -> None:
    upstream = Upstream()
    names = [f"s-{n}" for n in range(100)]
    await loop_of(upstream).run([one(0.01, name) for name in names])
    assert [headers["x-session-id"] for headers in upstream.headers] == names


async def test_one_more_than_may_be_open_is_not_sent_and_says_so() -> None:
    upstream = Upstream(open_at_once=False)
    loop = loop_of(upstream, max_open=2)
    run = asyncio.create_task(loop.run([one(0.0, f"{n}") for n in range(3)]))
    await eventually_async(lambda: len(loop.sent) == 1)
    assert loop.sent[0].outcome.error == NOT_SENT
    upstream.let.set()
    await run
    assert len(upstream.bodies) == 2
    assert len(loop.sent) == 3


async def test_stopped_it_gives_up_what_is_open_and_sends_no_more() -> None:
    upstream = Upstream(open_at_once=False)
    loop = loop_of(upstream)
    run = asyncio.create_task(loop.run([one(0.0), two_turns(0.0), one(60.0)]))
    await eventually_async(lambda: len(upstream.bodies) == 2)
    loop.stop()
    await run
    assert [sent.outcome.error for sent in loop.sent] == [INTERRUPTED, INTERRUPTED]
    assert loop.open == 0


async def test_a_generator_that_is_held_up_says_how_late_it_was() -> None:
    upstream = Upstream()
    loop = loop_of(upstream)

    async def send(*request: Any) -> Outcome:
        while loop.now_s < 0.15:
            time.sleep(0.01)  # noqa: ASYNC251  (all is held up on purpose)
        return await upstream.send(*request)

    loop._send = send
    await loop.run([one(0.0), one(0.05)])
    second = loop.sent[1]
    assert second.intended_s == 0.05
    assert second.sent_s >= 0.15
