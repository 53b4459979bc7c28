"""Ten-turn conversations: how many requests need not wait for the tokenizer, and what it costs.

    .venv/bin/python benchmarks/conversations.py [--conversations 60] [--shares 0.5,0.7] [--json]

Fake engines run in this process, with real HTTP and real events; pool, index and decider are the
server's own. Every conversation has ten turns; a turn is decided, sent to the chosen engine, and
its answer becomes part of the next. Engines hold little more than what is under way, so that a bad
decision costs a hit. The same conversations run once with every prompt tokenized first (the
yardstick), then with the conversation cache at each share.

Printed for each: the part of the requests that was decided without waiting, the part of the prompt
tokens that the engines reused (by their own count), claims that were wrong, and the mean time of a
decision. What it does not show: the tokenizer here is the fake engine's, on the same CPU, so that
times say little; a real template or tokenizer; several replicas of this server.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from aibrix_extproc.decide import Decider
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool

TURNS = 10
MODEL = "tiny"
CHAT = "/v1/chat/completions"
WORDS = [a + b for a in ("ba", "ko", "mi", "tu", "re") for b in ("la", "no", "si", "du", "pe", "x")]

WORKLOADS = {
    "chat": (150, (10, 60), (30, 150)),
    "short questions": (0, (5, 20), (60, 200)),
    "long questions": (0, (40, 40), (24, 24)),
    "documents": (400, (20, 300), (20, 80)),
}
"""Name → words of the system prompt (one of four), words of a question, tokens of an answer."""


@dataclass
class Outcome:
    """What one run saw."""

    requests: int = 0
    waited: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def at_once(self) -> float:
        return 1 - self.waited / self.requests

    @property
    def hit_ratio(self) -> float:
        return self.cached_tokens / self.prompt_tokens


class Server:
    """The parts of the server that a decision needs, without Envoy."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.index = PrefixIndex()
        predictions = Predictions(settings.prediction_max_blocks)
        ledger = Ledger(settings.reservation_limit_s)
        self.manager = SourceManager(
            self.index, settings, self.metrics, predictions.drop, ledger.forget
        )
        self.registry.subscribe(self.manager.on_pod)
        self.pool = TokenizerPool(settings, self.metrics)
        self.decider = Decider(
            settings,
            self.metrics,
            self.registry,
            self.manager,
            self.index,
            self.pool,
            ledger,
            predictions,
            rng=random.Random(1),
        )

    async def start(self, pods: list[Pod]) -> None:
        await self.pool.start()
        self.manager.start_events()
        self.registry.replace(pods)
        while not self.manager.synced():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.pool.close()
        await asyncio.to_thread(self.manager.close)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def pod_of(engine: FakeEngine) -> Pod:
    events, replays = engine.event_ports[0], engine.replay_ports[0]
    rank = Rank(0, f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replays}")
    return Pod(
        "bench", engine.config.name, "1", engine.address, MODEL, kv_events=True, ranks=(rank,)
    )


async def ask(http: aiohttp.ClientSession, address: str, body: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    async with http.post(f"http://{address}{CHAT}", data=body, headers=headers) as reply:
        reply.raise_for_status()
        answer: dict[str, Any] = await reply.json()
        return answer


async def converse(
    server: Server, http: aiohttp.ClientSession, workload: str, seed: int, outcome: Outcome
) -> None:
    """One conversation, turn after turn."""
    system_words, question_words, answer_tokens = WORKLOADS[workload]
    rng = random.Random(seed)
    messages: list[dict[str, str]] = []
    if system_words:
        system = words(random.Random(rng.randrange(4)), system_words)
        messages.append({"role": "system", "content": system})
    for _ in range(TURNS):
        question = words(rng, rng.randint(*question_words))
        messages.append({"role": "user", "content": question})
        limit = rng.randint(*answer_tokens)
        body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": limit}).encode()
        started = time.perf_counter()
        picked = await server.decider.decide(RouteRequest("POST", CHAT, {}, body, ""))
        outcome.seconds.append(time.perf_counter() - started)
        assert isinstance(picked, Picked)
        reply = await ask(http, picked.decision.chosen.candidate.pod.address, body)
        server.decider.prefill_done(picked.ticket)
        server.decider.release(picked.ticket)
        usage = reply["usage"]
        outcome.requests += 1
        outcome.prompt_tokens += usage["prompt_tokens"]
        outcome.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        content = reply["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": content})
        await asyncio.sleep(rng.uniform(0.02, 0.1))


async def run(workload: str, args: argparse.Namespace, seed: int, **settings: Any) -> Outcome:
    """All conversations of one workload, `--at-once` of them at a time."""
    outcome = Outcome()
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                FakeEngine(EngineConfig(model=MODEL, name=f"e{i}", num_blocks=args.blocks))
            )
            for i in range(args.engines)
        ]
        server = Server(Settings(use_remote_tokenizer=True, kv_event_sync=True, **settings))
        await server.start([pod_of(engine) for engine in engines])
        stack.push_async_callback(server.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        room = asyncio.Semaphore(args.at_once)

        async def one(number: int) -> None:
            async with room:
                await converse(server, http, workload, seed * 100_000 + number, outcome)

        await asyncio.gather(*(one(number) for number in range(args.conversations)))
        look_ups = "aibrix_extproc_tokenizer_cache_total"
        outcome.waited = int(
            server.value(look_ups, result="miss") + server.value(look_ups, result="shared")
        )
        outcome.wrong = int(server.value("aibrix_extproc_token_prefix_wrong_total"))
    return outcome


def row(workload: str, mode: str, outcomes: list[Outcome]) -> dict[str, Any]:
    ratios = [outcome.hit_ratio for outcome in outcomes]
    times = [statistics.mean(outcome.seconds) * 1e3 for outcome in outcomes]
    return {
        "workload": workload,
        "mode": mode,
        "requests": outcomes[0].requests,
        "tokens_per_prompt": round(outcomes[0].prompt_tokens / outcomes[0].requests),
        "decided_at_once": round(statistics.median(o.at_once for o in outcomes), 4),
        "hit_ratio": round(statistics.median(ratios), 4),
        "hit_ratio_spread": round(max(ratios) - min(ratios), 4),
        "wrong_claims": sum(outcome.wrong for outcome in outcomes),
        "decision_ms": round(statistics.median(times), 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    print("| workload | mode | tokens | at once | hit ratio | spread | wrong | decision |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['workload']} | {r['mode']} | {r['tokens_per_prompt']} "
            f"| {100 * r['decided_at_once']:.1f} % | {100 * r['hit_ratio']:.2f} % "
            f"| {100 * r['hit_ratio_spread']:.2f} % | {r['wrong_claims']} "
            f"| {r['decision_ms']:.2f} ms |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=12, help="conversations at one time")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=500, help="KV blocks of each engine")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--shares", default="0.5", help="shares to try, with commas between")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    args = parser.parse_args()
    rows = []
    for workload in args.workloads.split(","):
        modes: dict[str, dict[str, Any]] = {"always waiting": {"conversation_cache": False}}
        for share in args.shares.split(","):
            modes[f"share {share}"] = {"prefix_decide_share": float(share)}
        outcomes: dict[str, list[Outcome]] = {mode: [] for mode in modes}
        for trial in range(args.trials):  # interleaved: what drifts, drifts for all
            for mode, settings in modes.items():
                outcomes[mode].append(asyncio.run(run(workload, args, trial, **settings)))
        rows += [row(workload, mode, found) for mode, found in outcomes.items()]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
