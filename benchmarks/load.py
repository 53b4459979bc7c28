"""Whether the load test holds 150 requests in a second with all of its own stack on this machine.

    .venv/bin/python -m benchmarks.load [--rate 150] [--seconds 40] [--envoy PATH]

For each size of prompt: `aibrix-extproc loadtest` with Envoy, a processor, four fake engines and
the null run. It holds where no request failed, at least 99 % of what was offered was answered, and
TTFT did not grow throughout. A line for each, the reports in bench-results/load-…; exit code 1
where one does not hold. What it says is only of the machine as busy as it was.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aibrix_extproc import cli

RESULTS: Final = Path(__file__).parents[1] / "bench-results"
ANSWERED: Final = 0.99
"""Of what was offered."""
CHUNKS: Final = 8
"""Of text, in each answer."""


@dataclass(frozen=True, slots=True)
class Size:
    """A prompt in tokens; blocks of each engine, so that it holds its share of the prefixes."""

    prefix: int
    turn: int
    blocks: int

    @property
    def tokens(self) -> int:
        """Of a prompt."""
        return self.prefix + self.turn


SIZES: Final = (Size(1600, 400, 16_384), Size(6000, 1200, 32_768))


def command(size: Size, rate: float, seconds: float, folder: Path) -> list[str]:
    """The load test of one size: 150 groups, engines that are fast enough for it."""
    numbers = {
        "--rate": rate,
        "--sessions": round(rate * seconds),
        "--groups": 150,
        "--prefix-tokens": size.prefix,
        "--turn-tokens": size.turn,
        "--output-tokens": CHUNKS,
        "--pods": 4,
        "--num-blocks": size.blocks,
        "--prefill-us-per-token": 2,
        "--decode-ms-per-token": 5,
    }
    words = ["loadtest", "shared-prefix", "--strategy", "prefix-cache", "--report", str(folder)]
    for name, number in numbers.items():
        words += [name, str(number)]
    return words


def misses(run: dict[str, Any]) -> list[str]:
    """Why this run, of a report.json, does not hold; empty: it does."""
    found = []
    if run["errors"]:
        found.append(f"{run['errors']} failed")
    if run["answered_per_s"] < ANSWERED * run["offered_per_s"]:
        found.append(f"answered less than {ANSWERED:.0%}")
    if run["steady"] is False:
        found.append("TTFT grew throughout")
    return found


def line(size: Size, report: dict[str, Any]) -> str:
    """What a person wants to know of one size."""
    run, null_run = report["runs"][0], report["test"]["null_run"]
    missed = ", ".join(misses(run))
    figures = (
        f"offered {run['offered_per_s']:.1f}/s, answered {run['answered_per_s']:.1f}/s",
        f"{run['errors']} failed",
        f"TTFT p50 {1e3 * run['ttft_s']['p50']:.0f} ms, p99 {1e3 * run['ttft_s']['p99']:.0f} ms",
        f"late p99 {1e3 * run['lateness_s']['p99']:.1f} ms",
        f"generator {run['generator_cpu_share']:.0%} of a core",
        f"machine {run['machine_cpu_share']:.0%}",
        f"ceiling {null_run['requests_per_s']:.0f}/s",
        f"DOES NOT HOLD ({missed})" if missed else "holds",
    )
    return f"{size.tokens} tokens: {', '.join(figures)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all sizes; 0 where each holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--envoy", help="default: $PATH, else .venv-envoy")
    parser.add_argument("--tokens", type=int, help="only the size of so many")
    args = parser.parse_args(arguments)
    lines, held = [], True
    for size in SIZES:
        if args.tokens not in (None, size.tokens):
            continue
        folder = RESULTS / f"load-{size.tokens}"
        words = command(size, args.rate, args.seconds, folder)
        code = cli.main([*words, *(["--envoy", args.envoy] if args.envoy else [])])
        if code not in (0, 1):
            return code
        report = json.loads((folder / "report.json").read_text())
        held = held and not misses(report["runs"][0])
        lines.append(line(size, report))
    print(*lines, sep="\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
