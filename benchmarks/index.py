"""Benchmarks of the index: a table for people, JSON for machines.

    .venv/bin/python -m benchmarks.index [--trials 5] [--only ingest,match] [--large]

Every trial is a fresh process; the table has the median and, behind it, the least and the most.
`--large` adds 11 and 30 million placements (some minutes, 6 GB). See docs/performance.md.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.index import BACKEND, Backend
from benchmarks.trials import PROMPT_TOKENS

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench-results" / "index.json"
MATCH_BARS_US: Final = dict(zip(PROMPT_TOKENS, (3, 10, 30, 110), strict=True))
SHAPES: Final = [(16, False), (16, True), (1, False), (1, True)]
"""(events per message, arrays)."""


@dataclass
class Bench:
    """Runs trials and keeps their results."""

    trials: int
    directory: Path
    results: list[dict[str, Any]] = field(default_factory=list)
    _files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def file(self, sources: int, sequences: int, **shape: Any) -> tuple[str, int]:
        """A file of messages, and the blocks that they store."""
        name = "-".join(map(str, (sources, sequences, *shape.values())))
        if name not in self._files:
            path = str(self.directory / name)
            options = {"sources": sources, "sequences": sequences, "path": path} | shape
            self._files[name] = (path, int(run("files", options)["blocks"]))
        return self._files[name]

    def measure(
        self, what: str, back_end: str, *, trials: int | None = None, **options: Any
    ) -> dict[str, tuple[float, float, float]]:
        """(median, least, most) of each value of so many trials."""
        options |= {"back_end": back_end}
        all_trials = [run(what, options) for _ in range(trials or self.trials)]
        summary = {
            name: (statistics.median(values), min(values), max(values))
            for name in all_trials[0]
            for values in [[trial[name] for trial in all_trials]]
        }
        shown = {name: value for name, value in options.items() if name not in ("file", "removals")}
        self.results.append({"what": what, "options": shown, "trials": all_trials})
        return summary


def run(name: str, options: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.trials", name, json.dumps(options)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    answer: dict[str, float] = json.loads(output)
    return answer


def row(label: str, values: tuple[float, float, float], unit: str, bar: str = "") -> None:
    median, least, most = values
    spread = f"({least:.4g} to {most:.4g})"
    print(f"{label:<58} {median:>9.4g} {unit:<4} {spread:<22} {bar}", flush=True)


def shape_name(events: int, arrays: bool) -> str:
    return f"{events:>2} events per message, {'arrays' if arrays else 'maps'}"


def back_ends() -> list[str]:
    return ["core", "reference"] if BACKEND is Backend.CORE else ["reference"]


def bench_ingest(bench: Bench) -> None:
    print("\nIngest, per block (CPU, then wall)")
    for events, arrays in SHAPES:
        path, blocks = bench.file(100, 2000, events_per_message=events, arrays=arrays)
        for back_end in [*back_ends(), "empty"]:
            found = bench.measure(
                "ingest", back_end, file=path, blocks=blocks, sources=100, events=events,
                arrays=arrays, trials=bench.trials if back_end == "core" else 2,
            )  # fmt: skip
            label = f"{back_end}, {shape_name(events, arrays)}"
            bar = f"bar {250 if events > 1 else 400}" if back_end == "core" else ""
            row(f"{label}, CPU", found["cpu_ns"], "ns", bar)
            row(f"{label}, wall", found["wall_ns"], "ns")


def bench_naive(bench: Bench) -> None:
    """The floor: the same bytes into plain hash maps, in Rust, without what makes it an index."""
    if shutil.which("cargo") is None:
        print("naive floor: skipped, no cargo on the PATH")
        return
    print("\nNaive floor, per block (decode, hash, two std HashMaps; no Python, no locks)")
    path, blocks = bench.file(100, 2000, events_per_message=16, arrays=False)
    manifest = str(ROOT / "core" / "Cargo.toml")
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--manifest-path", manifest]
    command += ["--example", "naive", "--", path, str(blocks)]
    trials = []
    for _ in range(bench.trials):
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        trials.append(json.loads(output))
    bench.results.append({"what": "naive", "options": {}, "trials": trials})
    for name in trials[0]:
        values = [trial[name] for trial in trials]
        row(f"naive, {name}", (statistics.median(values), min(values), max(values)), "ns")


def bench_memory(bench: Bench) -> None:
    print("\nMemory, growth of RSS per placement")
    path, blocks = bench.file(100, 2000, events_per_message=16, arrays=False)
    for back_end in back_ends():
        found = bench.measure("memory", back_end, file=path, blocks=blocks, sources=100)
        row(f"{back_end}, RSS", found["bytes"], "B", "bar 40" if back_end == "core" else "")
        row(f"{back_end}, as stats().bytes tells it", found["told_bytes"], "B")


def bench_match(bench: Bench) -> None:
    print("\nMatch, as Python sees it, hashing included; 4 holders")
    path, _ = bench.file(100, 2000, events_per_message=16, arrays=False)
    for back_end in [*back_ends(), "empty"]:
        found = bench.measure(
            "match", back_end, file=path, sources=100, sequences=2000,
            repeats=301 if back_end != "reference" else 11,
            trials=bench.trials if back_end == "core" else 1,
        )  # fmt: skip
        for tokens in PROMPT_TOKENS:
            for label in ("full", "half", "none"):
                has_bar = back_end == "core" and label == "full"
                bar = f"bar {MATCH_BARS_US[tokens]}" if has_bar else ""
                row(f"{back_end}, {tokens} tokens, {label}", found[f"{tokens}_{label}"], "µs", bar)
        holders = int(found["shared_holders"][0])
        bar = "bar 3 + 96 × 0.06 = 8.8" if back_end == "core" else ""
        row(f"{back_end}, 38 blocks, {holders} holders", found["shared"], "µs", bar)


def bench_removal(bench: Bench) -> None:
    print("\nRemoval, per block (16 BlockRemoved of one block per message), and clearing a source")
    path, blocks = bench.file(100, 2000, events_per_message=16, arrays=False)
    gone, _ = bench.file(100, 2000, removals=True)
    for back_end in back_ends():
        trials = bench.trials if back_end == "core" else 1
        options = {"file": path, "blocks": blocks, "sources": 100, "trials": trials}
        found = bench.measure("removal", back_end, removals=gone, **options)
        row(f"{back_end}, removal, CPU", found["cpu_ns"], "ns",
            "bar 250" if back_end == "core" else "")  # fmt: skip
        found = bench.measure("clear", back_end, **options)
        row(f"{back_end}, clear_source, per placement", found["ns"], "ns")


def bench_latency(bench: Bench) -> None:
    print("\nMatch latency, 38 blocks, 100 holders, one thread, while another applies")
    path, blocks = bench.file(100, 2000, events_per_message=16, arrays=False)
    for back_end in back_ends():
        for rate in (0, 50_000, 200_000):
            found = bench.measure(
                "latency", back_end, file=path, blocks=blocks, sources=100, sequences=2000,
                rate=rate, seconds=5, trials=3,
            )  # fmt: skip
            label = f"{back_end}, {rate} blocks/s asked"
            row(f"{label}, applied", found["blocks_per_s"], "/s")
            row(f"{label}, p50", found["p50_us"], "µs")
            has_bar = back_end == "core" and rate == 200_000
            row(f"{label}, p99", found["p99_us"], "µs", "bar 1000" if has_bar else "")
            row(f"{label}, worst", found["worst_us"], "µs")


def bench_scale(bench: Bench, large: bool) -> None:
    print("\nScale: sources × sequences")
    shapes = [(10, 2000), (100, 2000), (1000, 200)] + (
        [(1000, 1500), (1000, 4700)] if large else []
    )
    for sources, sequences in shapes:
        path, blocks = bench.file(sources, sequences, events_per_message=16, arrays=False)
        options = {"file": path, "blocks": blocks, "sources": sources, "trials": 2}
        label = f"{sources} × {sequences}: {blocks / 1e6:.1f} million placements"
        for back_end in back_ends()[:1]:
            row(f"{label}, CPU per block",
                bench.measure("ingest", back_end, **options)["cpu_ns"], "ns")  # fmt: skip
            row(f"{label}, RSS per placement",
                bench.measure("memory", back_end, **options)["bytes"], "B")  # fmt: skip
            found = bench.measure("match", back_end, sequences=sequences, repeats=101, **options)
            row(f"{label}, match of 8192 tokens", found["8192_full"], "µs")
            holders = int(found["shared_holders"][0])
            row(f"{label}, match of 38 blocks, {holders} holders", found["shared"], "µs")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, default=5)
    options.add_argument("--only", default="naive,ingest,memory,match,removal,latency,scale")
    options.add_argument("--large", action="store_true", help="11 and 30 million placements too")
    chosen = options.parse_args()
    wanted = set(chosen.only.split(","))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"index {BACKEND}, {chosen.trials} trials")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(chosen.trials, Path(directory))
        for name, work in (
            ("naive", bench_naive),
            ("ingest", bench_ingest),
            ("memory", bench_memory),
            ("match", bench_match),
            ("removal", bench_removal),
            ("latency", bench_latency),
        ):
            if name in wanted:
                work(bench)
        if "scale" in wanted:
            bench_scale(bench, chosen.large)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(bench.results, indent=1))
    print(f"\nfor machines: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
