"""The tokenizer is away, or slow: every request is answered, and routed by what is known."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from tests.e2e.beside import MODES, Wiring, another_envoy
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import (
    MATCHED,
    PICKED,
    Post,
    ask_together,
    counted,
    opened_post,
    text,
)
from tests.support import eventually_async, free_port

FALLBACK = "aibrix_extproc_fallback_total"
FAILURES = "aibrix_extproc_tokenizer_failures_total"
LONG_WAIT = {
    # Longer than any test: only the deadline of a decision can end the wait.
    "AIBRIX_EXTPROC_TOKENIZER_TIMEOUT": "60s",
    "AIBRIX_EXTPROC_DECISION_TIMEOUT": "200ms",
}


async def test_a_tokenizer_that_refuses_is_replaced_by_a_pods_own() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    environment = {"AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": endpoint}
    async with gateway(engines=2, environment=environment) as stack:
        first = await stack.complete(text("a"))
        again = await stack.complete(text("a"))
        assert first.status == again.status == 200
        assert again.pod == first.pod
        assert int(again.headers[MATCHED]) == again.cached_tokens > 256
        assert await counted(stack, FAILURES, reason="refused") >= 1
        assert await counted(stack, FALLBACK, reason="refused") == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[tuple[Stack, Post]]:
    """A tokenizer of its own that this process can make fail; the pods' own always fail."""
    with opened_post() as tokenizer_post:
        tokenizer = await FakeEngine(EngineConfig(name="tokenizer", kv_events_port=None)).start()
    environment = {
        "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": f"http://{tokenizer.address}",
        "AIBRIX_EXTPROC_TOKENIZER_BREAKER_COOLDOWN": "50ms",
    } | LONG_WAIT
    try:
        with opened_post() as pods:
            pods.fails = lambda path: path == "/tokenize"
            async with gateway(engines=2, environment=environment) as stack:
                yield stack, tokenizer_post
    finally:
        await tokenizer.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_tokenizer_requests_are_routed_by_load_and_counted(
    served: tuple[Stack, Post],
) -> None:
    stack, tokenizer = served
    before = await stack.metrics()
    tokenizer.fails = lambda path: path == "/tokenize"
    replies = await ask_together(stack, [stack.complete(text("l")) for _ in range(4)])
    assert sorted(str(reply.pod) for reply in replies) == ["engine-0"] * 2 + ["engine-1"] * 2
    assert [reply.headers[MATCHED] for reply in replies] == ["0"] * 4
    tokenizer.answer_again()
    after = await stack.metrics()
    assert after[FALLBACK] - before.get(FALLBACK, 0) == 4
    assert await counted(stack, FALLBACK, reason="status") >= 1
    await eventually_async(lambda: matches(stack, text("l")))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("wiring", MODES, ids=str)
async def test_a_tokenizer_that_hangs_costs_no_more_than_the_deadline_of_the_decision(
    served: tuple[Stack, Post], wiring: Wiring
) -> None:
    stack, tokenizer = served
    gate = await another_envoy(stack, wiring)
    late = await counted(stack, FALLBACK, reason="deadline")
    tokenizer.hangs = lambda path: path == "/tokenize"
    prompt = text(f"h{wiring.body_mode[0]}")
    reply = await gate.complete(prompt)
    assert tokenizer.waiting == 1
    assert reply.status == 200
    assert PICKED in reply.headers
    assert await counted(stack, FALLBACK, reason="deadline") == late + 1
    # The call that was too late for this request serves the next one.
    tokenizer.answer_again()
    await eventually_async(lambda: matches(gate, prompt))
    assert tokenizer.waiting == 0


async def matches(stack: Stack, prompt: str) -> bool:
    """The prompt is tokenized, and goes where it has been before."""
    reply = await stack.complete(prompt)
    assert reply.status == 200
    return int(reply.headers[MATCHED]) > 256
