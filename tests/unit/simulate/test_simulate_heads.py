"""Heads of answers that come at once, as vLLM sends them, and what the router makes of them."""

from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.records import summarise
from aibrix_extproc.workloads.generated import Shape, unique
from tests.unit.simulate.simulated import run, scenario

TRAFFIC = Shape(sessions=300, rate=28.0, prefix_tokens=3000, turn_tokens=1000, output_tokens=60)


def ttft_s(*, heads_at_once: bool, events: bool) -> float:
    given = scenario("prefix-cache", 4, shape=EngineShape(), heads_at_once=heads_at_once)
    return summarise(run(given, unique(TRAFFIC, seed=3), events=events)).ttft_s.mean


def test_events_tell_of_prefills_what_heads_that_come_at_once_do_not() -> None:
    told = ttft_s(heads_at_once=False, events=True)
    assert ttft_s(heads_at_once=True, events=True) < 1.02 * told
    assert ttft_s(heads_at_once=True, events=False) > 1.3 * told
