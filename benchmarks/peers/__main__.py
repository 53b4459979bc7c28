"""Our core, plain C and two peers on workload W, in one run.

    .venv/bin/python -m benchmarks.peers [--trials 3] [--only floor,core,radix_tree,indexer,smg]

Every trial is a fresh process, held to one core with all of its threads. Trials of all subjects
take turns: what drifts on the machine drifts for all. A peer that is not installed or fails is
skipped with a message. `make bench-peers` installs them into .venv-peers/; docs/performance.md says
what each figure includes.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.index import BACKEND, Backend
from benchmarks.messages import on_one_core
from benchmarks.peers.files import PROMPT_TOKENS, Files, write

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "bench-results" / "peers.json"
PEERS: Final = ROOT / ".venv-peers"
Trial = dict[str, float]


class Skipped(Exception):
    """A subject cannot be measured here."""


@dataclass
class Run:
    """One run's files, and where compiled things go."""

    directory: Path
    files: Files
    results: dict[str, list[Trial]] = field(default_factory=dict)

    @property
    def files_path(self) -> str:
        return str(self.directory / "files.json")

    def ours(self, what: str, **options: Any) -> Trial:
        options |= {"back_end": "core", "blocks": self.files.blocks, "sources": self.files.sources}
        command = [sys.executable, "-m", "benchmarks.trials", what, json.dumps(options)]
        return answer(on_one_core(command))


def answer(command: list[str]) -> Trial:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                              timeout=600, check=True)  # fmt: skip
    except subprocess.CalledProcessError as error:
        why = (error.stderr or "").strip().splitlines()[-1:] or ["no message"]
        raise Skipped(
            f"{' '.join(command)[:200]} ended with {error.returncode}: {why[0]}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Skipped(str(error)) from error
    found: Trial = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def python_of(peer: str) -> str:
    python = PEERS / peer / "bin" / "python"
    if not python.exists():
        raise Skipped(f"{python.relative_to(ROOT)} is not there; `make bench-peers` installs it")
    return str(python)


def core(run: Run) -> Trial:
    if BACKEND is not Backend.CORE:
        raise Skipped("the compiled core is not built")
    stored = run.files.stored["16"]
    found = {
        f"ingest_{events}_ns": run.ours("ingest", file=path)["cpu_ns"]
        for events, path in run.files.stored.items()
    }
    found["memory_bytes"] = run.ours("memory", file=stored)["bytes"]
    found["removal_ns"] = run.ours("removal", file=stored, removals=run.files.removed)["cpu_ns"]
    matches = run.ours("match", file=stored, sequences=2000, repeats=101)
    return found | {f"match_{n}_us": matches[f"{n}_full"] for n in PROMPT_TOKENS}


def floor(run: Run) -> Trial:
    program = run.directory / "floor"
    if not program.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise Skipped("no cc on the PATH")
        source = str(ROOT / "benchmarks" / "floor.c")
        subprocess.run([compiler, "-O2", "-o", str(program), source], check=True)
    found = {}
    for events, path in run.files.stored.items():
        measured = answer(on_one_core([str(program), path, str(run.files.sources)]))
        assert measured["placements"] == run.files.blocks, measured
        found |= {f"ingest_{events}_ns": measured["cpu_ns"],
                  f"decode_{events}_ns": measured["decode_ns"]}  # fmt: skip
    return found


def radix_tree(run: Run) -> Trial:
    command = on_one_core([python_of("dynamo"), "-m", "benchmarks.peers.radix_tree"])
    made = run.directory / "radix_tree"
    if not made.exists():
        made.mkdir()
        answer([*command, "convert", run.files_path, str(made)])
    found = answer([*command, "time", run.files_path, str(made)])
    found["apply_ns"] = found.pop("ingest_ns")
    return found | answer([*command, "memory", run.files_path, str(made)])


def by_shape(command: Callable[[str], list[str]]) -> Trial:
    """All figures with 16 events per message, and the ingest alone with one."""
    found = answer(command("16"))
    return found | {
        "ingest_16_ns": found.pop("ingest_ns"),
        "ingest_1_ns": answer(command("1"))["ingest_ns"],
    }


def indexer(run: Run) -> Trial:
    python = python_of("dynamo")
    command = [sys.executable, "-m", "benchmarks.peers.indexer", run.files_path]
    return by_shape(lambda events: [*command, events, python])


def smg(run: Run) -> Trial:
    command = [python_of("smg"), "-m", "benchmarks.peers.smg", run.files_path]
    return by_shape(lambda events: [*command, events])


SUBJECTS: Final[dict[str, Callable[[Run], Trial]]] = {
    "floor": floor,
    "core": core,
    "radix_tree": radix_tree,
    "indexer": indexer,
    "smg": smg,
}


def measure(run: Run, wanted: list[str], trials: int) -> None:
    skipped: set[str] = set()
    for _ in range(trials):
        for name in wanted:
            if name in skipped:
                continue
            try:
                run.results.setdefault(name, []).append(SUBJECTS[name](run))
            except Skipped as why:
                print(f"{name}: skipped, {why}", flush=True)
                skipped.add(name)


def show(results: dict[str, list[Trial]]) -> None:
    for name, trials in results.items():
        print(f"\n{name}")
        for figure in trials[0] if trials else ():
            values = [trial[figure] for trial in trials]
            spread = f"({min(values):.4g} to {max(values):.4g})"
            print(f"  {figure:<24} {statistics.median(values):>10.4g} {spread}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--trials", type=int, default=3)
    options.add_argument("--only", default=",".join(SUBJECTS))
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run = Run(directory, write(directory))
        run.files.save(directory / "files.json")
        measure(run, chosen.only.split(","), chosen.trials)
    show(run.results)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(run.results, indent=1))
    print(f"\nfor machines: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
