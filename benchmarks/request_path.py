"""The request path through a real Envoy: what a decision costs, and what events do to its tail.

    .venv/bin/python -m benchmarks.request_path [--trials 5] [--only cost,raw,events] [--seconds 4]

`cost`: each kind of request against an empty ext_proc on the same stack (`empty_ext_proc`), in
turns; CPU per request of Envoy and of the processor, p50 and p99. `raw`: the same for the floor of
grpc.aio. `events`: p99 with 50,000 blocks/s of events in bursts of 100 ms and of 1 s, against none,
in turns. Every trial is a stack of fresh processes. A line that ends in "client!" says that the
client was late or busy, so that its latencies are not to be believed. See docs/performance.md.
"""

import argparse
import asyncio
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from aibrix_extproc.index import BACKEND
from benchmarks.request_stack import ROOT, Trial, run_trial

RESULTS: Final = ROOT / "bench-results" / "request_path.json"
COST_BAR: Final = 1.25
EVENTS_BAR: Final = 1.5
_LATE_MS: Final = 2.0
_BUSY: Final = 0.7

Report = dict[str, Any]

CELLS: Final = {
    "buffered, 1 kB, cached": Trial("ours", "buffered", 1_000),
    "buffered, 16 kB, cached": Trial("ours", "buffered", 16_000),
    "buffered, 256 kB, cached": Trial("ours", "buffered", 256_000, prompts=16, rate=100),
    "buffered, 1 kB, new": Trial("ours", "buffered", 1_000, prompts=0),
    "buffered, 16 kB, new": Trial("ours", "buffered", 16_000, prompts=0),
    "buffered, 256 kB, new": Trial("ours", "buffered", 256_000, prompts=0, rate=20),
    "duplex, 1 kB, cached": Trial("ours", "duplex", 1_000),
    "duplex, 16 kB, cached": Trial("ours", "duplex", 16_000),
    "duplex, 256 kB, cached": Trial("ours", "duplex", 256_000, prompts=16, rate=100),
}
"""The bar holds for the cached ones of 1 and 16 kB."""


@dataclass
class Bench:
    """Runs trials in turns, and keeps what they reported."""

    trials: int
    seconds: float
    results: list[Report] = field(default_factory=list)

    def in_turns(self, what: str, kinds: dict[str, Trial]) -> dict[str, list[Report]]:
        """So many rounds, each kind once in each; the order turns from round to round."""
        found: dict[str, list[Report]] = {kind: [] for kind in kinds}
        names = list(kinds)
        for number in range(self.trials):
            for kind in names if number % 2 == 0 else reversed(names):
                trial = replace(kinds[kind], seed=number + 1, seconds=self.seconds)
                report = asyncio.run(run_trial(trial))
                found[kind].append(report)
                self.results.append({"what": what, "kind": kind, "trial": asdict(trial)} | report)
        return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def both_us(report: Report) -> float:
    return float(report["cpu_us"]["envoy"] + report["cpu_us"]["ext_proc"])


def alone_us(report: Report) -> float:
    return float(report["cpu_us"]["ext_proc"])


def ratios(
    ours: Sequence[Report], other: Sequence[Report], value: Callable[[Report], float]
) -> list[float]:
    """Of each round."""
    return [value(a) / value(b) for a, b in zip(ours, other, strict=True)]


def notes(reports: Sequence[Report]) -> str:
    """What makes the figures doubtful; empty where nothing does."""
    failed = sum(report["failed"] for report in reports)
    limited = any(
        report["client_late_p99_ms"] > _LATE_MS
        or report["client_busy"] > _BUSY
        or report["client_gave_up"]
        for report in reports
    )
    return (f" {failed} failed!" if failed else "") + (" client!" if limited else "")


def bench_cost(bench: Bench, cells: dict[str, Trial], baseline: str = "empty") -> None:
    print(f"\nCost of a request, against the {baseline} ext_proc of the same round (bar 1.25)")
    print(f"{'':26} {'Envoy + ext_proc, µs':>42} {'ratio':>22} {'ext_proc alone':>22} p50, p99 ms")
    for name, ours in cells.items():
        kinds = {baseline: replace(ours, processor=baseline), "ours": ours}
        found = bench.in_turns(f"cost against {baseline}: {name}", kinds)
        base, mine = found[baseline], found["ours"]
        costs = " → ".join(spread([both_us(r) for r in reports], 0) for reports in (base, mine))
        times = " → ".join(
            f"{statistics.median(r['p50_ms'] for r in reports):.1f}, "
            f"{statistics.median(r['p99_ms'] for r in reports):.1f}"
            for reports in (base, mine)
        )
        print(
            f"{name:26} {costs:>42} {spread(ratios(mine, base, both_us)):>22} "
            f"{spread(ratios(mine, base, alone_us)):>22} {times}{notes(base + mine)}",
            flush=True,
        )


def bench_events(bench: Bench) -> None:
    print("\np99 at 400 requests/s, 16 kB, cached, with 50,000 blocks/s of events (bar 1.5)")
    quiet = CELLS["buffered, 16 kB, cached"]
    kinds = {
        "none": quiet,
        "every 100 ms": replace(quiet, burst_s=0.1),
        "every 1 s": replace(quiet, burst_s=1.0),
    }
    found = bench.in_turns("events", kinds)
    for kind, reports in found.items():
        p99 = ratios(reports, found["none"], lambda report: report["p99_ms"])
        rate = statistics.median(
            r["events"]["blocks_per_s"] if "events" in r else 0 for r in reports
        )
        print(
            f"{kind:14} {rate:>7.0f} blocks/s   p50 {spread([r['p50_ms'] for r in reports])}   "
            f"p99 {spread([r['p99_ms'] for r in reports])} ms   ratio {spread(p99)}"
            f"   ext_proc {spread([alone_us(r) for r in reports], 0)} µs{notes(reports)}",
            flush=True,
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, help="rounds (cost 5, events 7)")
    options.add_argument("--only", default="cost,events", help="cost, raw, events")
    options.add_argument("--cells", default="", help="of cost: those whose name has this in it")
    options.add_argument("--seconds", type=float, default=4.0, help="measured, of each trial")
    chosen = options.parse_args()
    wanted = chosen.only.split(",")
    cells = {name: trial for name, trial in CELLS.items() if chosen.cells in name}
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"index {BACKEND}")  # fmt: skip
    costs, events = (
        Bench(chosen.trials or 5, chosen.seconds),
        Bench(chosen.trials or 7, chosen.seconds),
    )
    if "cost" in wanted:
        bench_cost(costs, cells)
    if "raw" in wanted:
        buffered = {name: trial for name, trial in cells.items() if trial.mode == "buffered"}
        bench_cost(costs, buffered, "raw")
    if "events" in wanted:
        bench_events(events)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(costs.results + events.results, indent=1))
    print(f"\nfor machines: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
