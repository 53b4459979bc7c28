"""The commands of the study: `run` appends the cells that are missing, `judge` compares them."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.simulate.names import NAMES
from benchmarks.routing.cases import CASES, FIRST_SEED, SETS
from benchmarks.routing.cells import Cell, run
from benchmarks.routing.judge import gathered, summary, table, verdicts

_RESULTS: Final = Path("bench-results/routing.jsonl")


def main(arguments: Sequence[str]) -> int:
    """Run a command; 0 where it is done."""
    args = _parser().parse_args(arguments)
    if args.command == "judge":
        _judge(args)
    else:
        _run(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing")
    parser.add_argument("command", choices=("run", "judge"))
    parser.add_argument("--set", choices=SETS, action="append", help="default: all")
    parser.add_argument("--strategy", choices=NAMES, action="append", help="default: all")
    parser.add_argument("--case", action="append", help="default: all of the sets")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument(
        "--traces", type=Path, default=Path("../shared/data/traces"), help="Mooncake's, a folder"
    )
    return parser


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _cells(args: argparse.Namespace) -> list[Cell]:
    """Seed by seed, so that a study that is cut short has whole pairs."""
    return [
        Cell(case.set, case.name, strategy, FIRST_SEED[case.set] + place)
        for place in range(args.seeds)
        for case in CASES
        for strategy in args.strategy or NAMES
        if case.set in (args.set or SETS) and case.name in (args.case or [case.name])
    ]


def _run(args: argparse.Namespace) -> None:
    known = {
        Cell(row["set"], row["case"], row["strategy"], row["seed"]) for row in _rows(args.results)
    }
    missing = [cell for cell in _cells(args) if cell not in known]
    args.results.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    with args.results.open("a") as out, ProcessPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(run, cell, args.traces) for cell in missing]
        for number, future in enumerate(as_completed(futures), 1):
            out.write(json.dumps(future.result()) + "\n")
            out.flush()
            if number % 20 == 0:
                left_s = (time.monotonic() - began) / number * (len(missing) - number)
                print(f"{number} of {len(missing)}, {left_s:.0f} s left", file=sys.stderr)


def _judge(args: argparse.Namespace) -> None:
    rows = [
        row
        for row in _rows(args.results)
        if row["strategy"] in (args.strategy or NAMES)
        and row["case"] in (args.case or [row["case"]])
    ]
    for of_set in args.set or SETS:
        cases = gathered(rows, of_set)
        if cases:
            print("\n".join(("", f"## {of_set}", "", *summary(cases))))
        for case, strategies in cases.items():
            seeds = min(len(figures) for figures in strategies.values())
            print(f"\n### {of_set}: {case} ({seeds} seeds)\n")
            print("\n".join(table(strategies)))
            print("", *verdicts(strategies), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
