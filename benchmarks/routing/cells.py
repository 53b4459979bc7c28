"""One cell of the study: a case, a strategy, a seed. Runs it, and gives its figures.

Knows no file and no other cell, so that cells run in processes of their own.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.simulate.loop import Scenario, Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import Record, summarise
from benchmarks.routing.cases import CASES, Case

SLO_TTFT_S: Final = 0.5
SLO_TOKEN_S: Final = 0.05
"""Mean time between the tokens of one answer."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is run."""

    set: str
    case: str
    strategy: str
    seed: int


def case_of(cell: Cell) -> Case:
    """Raises StopIteration for one that is not there."""
    return next(c for c in CASES if c.set == cell.set and c.name == cell.case)


def run(cell: Cell, traces: Path) -> dict[str, Any]:
    """The figures of one run: times in seconds, shares from 0 to 1."""
    case = case_of(cell)
    scenario = Scenario(strategy=cell.strategy, times=case.times, shape=case.shape, seed=cell.seed)
    simulation = Simulation(scenario, router_settings(os.environ, events=True))
    began = time.process_time()
    outcome = simulation.run(case.traffic(cell.seed, traces))
    figures = summarise(outcome)
    return {
        "set": cell.set,
        "case": cell.case,
        "strategy": cell.strategy,
        "seed": cell.seed,
        "requests": figures.requests,
        "hit_ratio": figures.hit_ratio,
        "ttft_s": figures.ttft_s.mean,
        "ttft_p99_s": figures.ttft_s.p99,
        "end_to_end_s": figures.end_to_end_s.mean,
        "end_to_end_p99_s": figures.end_to_end_s.p99,
        "inter_token_p99_s": figures.inter_token_s.p99,
        "goodput": sum(map(_good, outcome.records)) / figures.requests,
        "requests_spread": figures.requests_spread,
        "preemptions": figures.preemptions,
        "cpu_s": time.process_time() - began,
    }


def _good(record: Record) -> bool:
    """Whether the answer came as the SLO asks."""
    ttft_s = record.first_token_s - record.arrived_s
    gaps = max(1, record.output_tokens - 1)
    token_s = (record.ended_s - record.first_token_s) / gaps
    return not math.isnan(token_s) and ttft_s <= SLO_TTFT_S and token_s <= SLO_TOKEN_S
