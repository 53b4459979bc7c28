"""The simulator against the fake engine, which takes real time: the same load, the same figures."""

import asyncio
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import aiohttp
import pytest

from aibrix_extproc.fakes.config import EngineConfig, TimeModel
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.figures import GAP_RESOLUTION_S
from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.loop import Scenario, Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.timing import Linear
from aibrix_extproc.simulate.tokens import token_ids
from aibrix_extproc.workloads.generated import Shape, shared_prefix
from aibrix_extproc.workloads.sessions import Session

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PODS = 2
SIZES = {"block_size": 16, "max_num_seqs": 32, "max_num_batched_tokens": 1024}
BLOCKS = 240
"""Few enough that prefixes are evicted."""
TIME = TimeModel(prefill_us_per_token=1800.0, decode_ms_per_token=150.0, decode_slowing=0.1)
"""Slow enough that HTTP on the loopback, and a busy machine, add little."""
SHAPE = Shape(sessions=60, rate=0.5, groups=8, prefix_tokens=640, turn_tokens=120, output_tokens=24)
AGREEMENT = 0.05


@dataclass(frozen=True)
class Figures:
    """Of one load; seconds."""

    hit_ratio: float
    ttft_s: float
    end_to_end_s: float
    inter_token_s: float


@dataclass
class Answer:
    """One request in real time."""

    prompt_tokens: int
    cached_tokens: int
    sent_s: float
    token_s: list[float]


async def ask(client: aiohttp.ClientSession, address: str, session: Session, at: float) -> Answer:
    loop = asyncio.get_running_loop()
    (turn,) = session.turns
    body = {
        "model": "tiny",
        "prompt": token_ids(turn.prompt).tolist(),
        "max_tokens": turn.answer.tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await asyncio.sleep(at - loop.time())
    answer = Answer(turn.prompt_tokens, 0, at, [])
    async with client.post(f"http://{address}/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"]:
                answer.token_s.append(loop.time())
            if chunk.get("usage"):
                answer.cached_tokens = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert len(answer.token_s) >= turn.answer.tokens
    return answer


async def in_real_time(sessions: Sequence[Session]) -> Figures:
    configs = [
        EngineConfig(num_blocks=BLOCKS + 1, time=TIME, kv_events_port=None, **SIZES)
        for _ in range(PODS)
    ]
    engines = [await FakeEngine(config).start() for config in configs]
    try:
        async with aiohttp.ClientSession() as client:
            begin = asyncio.get_running_loop().time() + 0.5
            answers = await asyncio.gather(
                *(
                    ask(client, engines[n % PODS].address, session, begin + session.start_s)
                    for n, session in enumerate(sessions)
                )
            )
    finally:
        for engine in engines:
            await engine.close()
    gaps = [b - a for answer in answers for a, b in pairwise(answer.token_s)]
    return Figures(
        sum(a.cached_tokens for a in answers) / sum(a.prompt_tokens for a in answers),
        statistics.mean(a.token_s[0] - a.sent_s for a in answers),
        statistics.mean(a.token_s[-1] - a.sent_s for a in answers),
        statistics.mean(gaps),
    )


def simulated(sessions: Sequence[Session]) -> Figures:
    given = Scenario("round-robin", (Linear(TIME),) * PODS, EngineShape(BLOCKS, **SIZES))
    found = Simulation(given, router_settings({}, events=True)).run(sessions)
    records = found.records
    gaps = sum(gap * times for gap, times in found.gaps.items()) * GAP_RESOLUTION_S
    return Figures(
        sum(r.cached_tokens for r in records) / sum(r.prompt_tokens for r in records),
        statistics.mean(r.first_token_s - r.arrived_s for r in records),
        statistics.mean(r.ended_s - r.arrived_s for r in records),
        gaps / found.gaps.total(),
    )


async def test_the_fake_engine_in_real_time_agrees_with_the_simulator() -> None:
    sessions = shared_prefix(SHAPE, seed=1)
    real, virtual = await in_real_time(sessions), simulated(sessions)
    print(f"in real time {real}\nsimulated    {virtual}")
    assert 0.1 < virtual.hit_ratio < 0.6, "nothing was evicted, or nothing reused"
    for name in ("hit_ratio", "ttft_s", "end_to_end_s", "inter_token_s"):
        wanted, found = getattr(real, name), getattr(virtual, name)
        assert math.isclose(found, wanted, rel_tol=AGREEMENT), f"{name}: {found} for {wanted}"
