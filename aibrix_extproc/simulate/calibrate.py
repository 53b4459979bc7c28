"""The calibration gate: our simulator against the figures of Dynamo 1.6's, on Mooncake's traces.

Run as `python -m aibrix_extproc.simulate.calibrate FOLDER`, with the folder that holds
`conversation_trace.jsonl` and `synthetic_trace.jsonl`. Exit code 1 where round robin's hit ratio
is off, 2 where the traces cannot be read. docs/simulator.md says how Dynamo's were had.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.loop import Scenario, Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import Summary, summarise
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.mooncake import mooncake

PODS: Final = 8
TOLERANCE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Gate:
    """One trace: what is wanted of it."""

    trace: str
    speed: float
    round_robin: float
    """Hit ratio."""
    gain: float
    """How many times round robin's the default's hit ratio should be, at least: Dynamo's own
    router reaches 2.07 and 4.48."""


GATES: Final = (
    Gate("conversation_trace.jsonl", 3.0, 0.082, 2.1),
    Gate("synthetic_trace.jsonl", 1.0, 0.112, 4.4),
)


def simulate(path: Path, speed: float, strategy: str) -> Summary:
    """One run of the gate: 8 pods of 16,384 blocks of 64 tokens. Raises SettingsError."""
    settings = router_settings({}, events=True)
    simulation = Simulation(Scenario(strategy, (Polynomial(),) * PODS), settings)
    return summarise(simulation.run(mooncake(path, speed)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    try:
        passed = [_passes(gate, folder) for gate in GATES]
        return 0 if all(passed) else 1
    except SettingsError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2


def _passes(gate: Gate, folder: Path) -> bool:
    path = folder / gate.trace
    baseline = _timed(path, gate.speed, "round-robin")
    passes = abs(baseline.hit_ratio - gate.round_robin) <= TOLERANCE
    print(f"  wanted {gate.round_robin} ± {TOLERANCE}: {'passes' if passes else 'FAILS'}")
    default = _timed(path, gate.speed, "prefix-cache")
    gain = default.hit_ratio / baseline.hit_ratio
    reached = "reached" if gain >= gate.gain else "missed"
    print(f"  {gain:.2f} × round robin's; {gate.gain} × {reached}", flush=True)
    return passes


def _timed(path: Path, speed: float, strategy: str) -> Summary:
    started = time.perf_counter()
    found = simulate(path, speed, strategy)
    print(
        f"{path.name} × {speed:g}, {strategy}: hit ratio {found.hit_ratio:.4f}, "
        f"TTFT {found.ttft_s.mean:.4f} s, end to end {found.end_to_end_s.mean:.3f} s; "
        f"{found.duration_s:.0f} virtual s in {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
