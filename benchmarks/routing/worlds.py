"""Where events matter: `python -m benchmarks.routing.worlds`, on two kinds of traffic.

A world is what lies around one rule: how many gateways, whether events come and how late, what
restarts. All worlds of one kind of traffic have the same sessions for the same seed. A table for
each, with ratios to the world that is named first; what was run is not run again.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.loop import Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import summarise
from aibrix_extproc.simulate.scenario import Scenario
from aibrix_extproc.simulate.scenes import Pause, PodRestarts
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.generated import Shape, multi_turn, shared_prefix
from aibrix_extproc.workloads.sessions import Session
from benchmarks.routing.judge import Figures, gathered, mean, ratio

_PODS: Final = 8
_FIRST_SEED: Final = 301
_RESULTS: Final = Path("bench-results/routing-worlds.jsonl")
_SET: Final = "worlds"


@dataclass(frozen=True, slots=True)
class World:
    """What a run has beside its traffic."""

    name: str
    strategy: str = "prefix-cache"
    events: bool = True
    scenario: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Scenario`."""


def _pair(name: str, **scenario: Any) -> tuple[World, World]:
    """The default with events, and by predictions alone."""
    return (
        World(f"{name}, events", scenario=scenario),
        World(f"{name}, no events", events=False, scenario=scenario),
    )


def _gateways(number: int) -> tuple[World, ...]:
    name = f"{number} gateways"
    return (
        *_pair(name, gateways=number),
        World(
            f"{name}, no events, session hashing in front",
            events=False,
            scenario={"gateways": number, "front": "session-hash"},
        ),
        World(f"{name}, `session-affinity`", "session-affinity", False, {"gateways": number}),
    )


_LONG_S: Final = 720.0
"""Longer than predictions live without events (10 minutes)."""

WORLDS: Final = (
    *_pair("1 gateway"),
    World("1 gateway, `session-affinity`", "session-affinity", events=False),
    World("1 gateway, `least-request`", "least-request", events=False),
    *(
        World(f"1 gateway, events {text} late", scenario={"event_delay_s": delay_s})
        for text, delay_s in (("10 ms", 0.01), ("100 ms", 0.1), ("1 s", 1.0), ("10 s", 10.0))
    ),
    *_gateways(2),
    *_gateways(4),
    *_pair("a fifth of the traffic past the gateway", around=0.2),
    *_pair("an idle quarter of an hour", scenes=(Pause(20.0, _LONG_S),)),
    *_pair("2 of 8 engines restart", scenes=(PodRestarts(20.0, 0), PodRestarts(20.0, 1))),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Sessions by seed, and the KV cache of a pod in blocks of 64 tokens."""

    name: str
    blocks: int


_CONVERSATIONS: Final = Shape(
    sessions=260,
    rate=7.0,
    groups=40,
    prefix_tokens=2000,
    turn_tokens=300,
    output_tokens=150,
    turns=6,
    think_s=6.0,
)
_DOCUMENTS: Final = Shape(
    sessions=1400,
    rate=40.0,
    groups=60,
    prefix_tokens=4000,
    turn_tokens=400,
    output_tokens=100,
)
TRAFFIC: Final = (
    Traffic("conversations", 8192),
    Traffic("documents", 4096),
    Traffic("documents, small caches", 1024),
)


def _sessions(traffic: str, seed: int) -> list[Session]:
    if traffic == "conversations":
        return multi_turn(_CONVERSATIONS, seed)
    return shared_prefix(_DOCUMENTS, seed)


def run(traffic: Traffic, world: World, seed: int) -> dict[str, Any]:
    """The figures of one run, as a row for `judge`."""
    scenario = Scenario(
        strategy=world.strategy,
        times=(Polynomial(),) * _PODS,
        shape=EngineShape(blocks=traffic.blocks),
        seed=seed,
        **world.scenario,
    )
    simulation = Simulation(scenario, router_settings(os.environ, events=world.events))
    figures = summarise(simulation.run(_sessions(traffic.name, seed)))
    return {
        "set": _SET,
        "case": traffic.name,
        "strategy": world.name,
        "seed": seed,
        "hit_ratio": figures.hit_ratio,
        "ttft_s": figures.ttft_s.mean,
        "end_to_end_p99_s": figures.end_to_end_s.p99,
    }


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing.worlds")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    args = parser.parse_args(arguments)
    rows = _rows(args.results)
    known = {(row["case"], row["strategy"], row["seed"]) for row in rows}
    missing = [
        (traffic, world, seed)
        for seed in range(_FIRST_SEED, _FIRST_SEED + args.seeds)
        for traffic in TRAFFIC
        for world in WORLDS
        if (traffic.name, world.name, seed) not in known
    ]
    args.results.parent.mkdir(exist_ok=True)
    with args.results.open("a") as out, ProcessPoolExecutor(args.jobs) as pool:
        for future in as_completed([pool.submit(run, *cell) for cell in missing]):
            rows.append(future.result())
            out.write(json.dumps(rows[-1]) + "\n")
            out.flush()
    for traffic, worlds in gathered(rows, _SET).items():
        print("\n".join(("", f"### {traffic}", "", *_table(worlds))))
    return 0


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _table(worlds: Mapping[str, Figures]) -> list[str]:
    """Each world's own figures, and its TTFT by the first world's."""
    first = worlds[WORLDS[0].name]
    rows = [
        f"| | hit ratio | TTFT mean | by that of {WORLDS[0].name} | p99 end to end |",
        "|---|---|---|---|---|",
    ]
    for world in WORLDS:
        figures = worlds.get(world.name)
        if figures:
            rows.append(
                f"| {world.name} | {mean(figures, 'hit_ratio'):.3f} "
                f"| {1e3 * mean(figures, 'ttft_s'):.1f} ms | {ratio(figures, first, 'ttft_s')} "
                f"| {mean(figures, 'end_to_end_p99_s'):.2f} s |"
            )
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
