"""Minutes of churn against the whole server: its memory must stay where it is.

    SOAK_SECONDS=600 .venv/bin/python -m tests.soak

A real Envoy, a real processor as a process, two fake engines that serve requests and evict, and
event streams (`benchmarks.fleet`) of pods that come, go, restart, store and remove. It fails where

- the index is not of equal size for equal contents before and after, or
- the processor's memory (RSS) grows by more than 5 % between a fifth of the time (minute 2 of
  10) and the end.

First everything that has a bound is filled up to it: the memory of the last decisions, the caches.
The time is counted from then on.
"""

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.decisions.ring import RING_DECISIONS
from aibrix_extproc.fakes.config import EngineConfig
from benchmarks.fleet import Fleet, Stream
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import counted, text
from tests.events import batch, removed, stored
from tests.support import eventually_async

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "600"))
SEED: Final = int(os.environ.get("SOAK_SEED", "1"))
RESULTS: Final = Path(__file__).parents[1] / "bench-results" / "soak.json"
GROWTH_LIMIT: Final = 0.05
TICK_S: Final = 0.2
PODS: Final = 16
MODELS: Final = ("churn-a", "churn-b", "churn-c")
SEQUENCES: Final = 150
"""Per pod, of 40 blocks each."""
BLOCKS: Final = 40
BLOCK_TOKENS: Final = 4
FIXED: Final = 4
PORTS: Final = 5000
"""Addresses of pods that nobody asks for anything: each is of another one."""

SMALL: Final = {
    "AIBRIX_EXTPROC_TOKENIZER_CACHE_BYTES": "2MiB",
    "AIBRIX_EXTPROC_PREDICTION_MAX_BLOCKS": "2000",
    "AIBRIX_EXTPROC_LOG_LEVEL": "WARNING",
    "AIBRIX_EXTPROC_PROBE_INTERVAL": "1h",
}


@dataclass
class Churner:
    """A pod that stores and removes."""

    number: int
    model: str
    stream: Stream
    rng: random.Random
    held: list[list[int]] = field(default_factory=list)

    def batches(self, steps: int) -> Iterator[bytes]:
        """What so many steps announce: a sequence each, and the oldest goes where there is no
        room."""
        for _ in range(steps):
            prefix = [self.rng.randrange(8)] * (BLOCKS // 2 * BLOCK_TOKENS)
            own = [self.rng.randrange(50_000) for _ in range(BLOCKS // 2 * BLOCK_TOKENS)]
            hashes = [self.rng.getrandbits(63) for _ in range(BLOCKS)]
            events = [stored(hashes, prefix + own, block_size=BLOCK_TOKENS)]
            self.held.append(hashes)
            if len(self.held) > SEQUENCES:
                events.append(removed(list(reversed(self.held.pop(0)))))
            yield batch(*events, ts=time.time())


def entry(number: int, model: str, stream: Stream) -> dict[str, Any]:
    return {
        "name": f"{model}-{number}",
        "model": model,
        "address": f"127.0.0.1:{PORTS + number}",
        "kv_events": {"port": stream.event_port, "replay_port": stream.replay_port},
    }


class Soak:
    """One run."""

    def __init__(self, stack: Stack, fleet: Fleet) -> None:
        self.stack, self.fleet = stack, fleet
        self.rng = random.Random(SEED)
        self.numbers = count()
        self.pods: list[Churner] = []
        self.requests = self.failures = 0
        self.samples: list[tuple[float, float, float]] = []
        """(seconds, RSS in bytes, index in bytes)."""

    # -- equal contents -----------------------------------------------------------------------

    async def size_of_fixed_contents(self) -> float:
        """The index's bytes with four pods, always of the same contents, and no other."""
        rng = random.Random(99)
        fixed = [
            Churner(n, "fixed", self.fleet.open(), random.Random(rng.random()))
            for n in range(FIXED)
        ]
        for pod in fixed:
            self.fleet.publish(pod.stream, *pod.batches(SEQUENCES + 20))
        numbers = [next(self.numbers) for _ in fixed]
        self.stack.list_pods(
            *(entry(n, "fixed", pod.stream) for n, pod in zip(numbers, fixed, strict=True))
        )
        await eventually_async(self._only_fixed, timeout_s=60)
        size = await counted(self.stack, "aibrix_kv_index_bytes")
        self.stack.list_pods()
        for pod in fixed:
            self.fleet.close(pod.stream)
        return size

    async def _only_fixed(self) -> bool:
        seen = await self.stack.debug("/debug/sources")
        placements = [one["placements"] for one in seen]
        swept = await counted(self.stack, "aibrix_kv_index_sources") == FIXED
        return swept and placements == [SEQUENCES * BLOCKS] * FIXED

    # -- churn --------------------------------------------------------------------------------

    def list_all(self) -> None:
        self.stack.list_pods(
            *(self.stack.endpoint(index) for index in range(len(self.stack.engines))),
            *(entry(pod.number, pod.model, pod.stream) for pod in self.pods),
        )

    def come(self) -> None:
        rng = random.Random(self.rng.random())
        model = self.rng.choice(MODELS)
        pod = Churner(next(self.numbers), model, self.fleet.open(), rng)
        self.fleet.publish(pod.stream, *pod.batches(SEQUENCES))
        self.pods.append(pod)

    def churn(self) -> None:
        """What happens in one tick beside requests."""
        rng = self.rng
        if rng.random() < 0.1:
            gone = self.pods.pop(rng.randrange(len(self.pods)))
            self.come()
            self.list_all()
            self.fleet.close(gone.stream)
        if rng.random() < 0.03:
            pod = rng.choice(self.pods)
            self.fleet.restart(pod.stream)
            pod.held.clear()
            self.fleet.publish(pod.stream, *pod.batches(SEQUENCES))
        for pod in rng.sample(self.pods, 4):
            self.fleet.publish(pod.stream, *pod.batches(3))

    async def ask(self, number: int) -> None:
        self.requests += 1
        prompt = f"{text(number % 40, 60)} {number}"
        reply = await self.stack.chat(prompt, max_tokens=1)
        self.failures += reply.status != 200

    async def fill_up(self) -> None:
        """Reach what has a bound, so that what grows later has none."""
        for start in range(0, RING_DECISIONS + 500, 50):
            await asyncio.gather(*(self.ask(start + n) for n in range(50)))

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.stack.servers[0].process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    async def run(self) -> dict[str, Any]:
        before = await self.size_of_fixed_contents()
        for _ in range(PODS):
            self.come()
        self.list_all()
        await eventually_async(self._engines_listed, timeout_s=60)
        await self.fill_up()
        begun = time.monotonic()
        number = 1_000_000
        while (elapsed := time.monotonic() - begun) < SECONDS:
            tick = time.monotonic()
            await asyncio.to_thread(self.churn)
            await asyncio.gather(self.ask(number), self.ask(number + 1))
            number += 2
            if not self.samples or elapsed - self.samples[-1][0] >= 1:
                size = await counted(self.stack, "aibrix_kv_index_bytes")
                self.samples.append((elapsed, self.rss_bytes(), size))
            await asyncio.sleep(max(0.0, tick + TICK_S - time.monotonic()))
        for pod in self.pods:
            self.fleet.close(pod.stream)
        after = await self.size_of_fixed_contents()
        return self.report(before, after)

    async def _engines_listed(self) -> bool:
        seen = await self.stack.debug("/debug/sources")
        names = {one["pod"] for one in seen}
        return {f"default/{engine.config.name}" for engine in self.stack.engines} <= names

    def report(self, before: float, after: float) -> dict[str, Any]:
        def rss_about(share: float) -> float:
            end = share * SECONDS
            near = [rss for at, rss, _ in self.samples if end - SECONDS / 20 <= at <= end]
            return statistics.median(near)

        first, last = rss_about(0.2), rss_about(1.0)
        return {
            "seconds": SECONDS,
            "seed": SEED,
            "requests": self.requests,
            "failures": self.failures,
            "index_bytes_before": before,
            "index_bytes_after": after,
            "rss_bytes_at_a_fifth": first,
            "rss_bytes_at_the_end": last,
            "rss_growth": round(last / first - 1, 4),
            "each_minute": [
                (round(at), round(rss / 1e6, 1), round(size / 1e6, 2))
                for at, rss, size in self.samples[:: max(1, int(SECONDS / 10))]
            ],
        }


async def main() -> int:
    engines = [EngineConfig(name=f"engine-{number}", num_blocks=400) for number in range(2)]
    with Fleet(buffer_steps=2 * SEQUENCES) as fleet:
        async with gateway(
            engines=engines, environment=SMALL, listed=False, wait_for="healthz"
        ) as stack:
            report = await Soak(stack, fleet).run()
    print(json.dumps(report, indent=1))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    bad = []
    if report["index_bytes_before"] != report["index_bytes_after"]:
        bad.append("equal contents are not of equal size")
    if report["rss_growth"] > GROWTH_LIMIT:
        bad.append(f"memory grew by {report['rss_growth']:.1%}")
    if report["failures"]:
        bad.append(f"{report['failures']} requests failed")
    print("; ".join(bad) or "memory stays")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
