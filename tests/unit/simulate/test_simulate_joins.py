"""A pod that joins a busy fleet is neither flooded nor left without work."""

from collections.abc import Sequence
from functools import cache

import pytest

from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.loop import Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import Record
from aibrix_extproc.simulate.scenario import Scenario
from aibrix_extproc.simulate.scenes import PodJoins
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.generated import Shape, multi_turn, shared_prefix, unique
from aibrix_extproc.workloads.sessions import Session

OLD, JOINS_S = 4, 10.0
LARGE = EngineShape(blocks=4096, block_size=16, max_num_batched_tokens=1024)
SLOW = Polynomial(prefill_us_per_token=150.0)
"""A prompt of 720 tokens that is not held takes 0.13 s, so that a pod begins at most 8 a second."""
SIZES = {"prefix_tokens": 600, "turn_tokens": 120, "output_tokens": 200}


def traffic(kind: str) -> list[Session]:
    if kind == "unique":
        return unique(Shape(sessions=500, rate=18.0, **SIZES), 1)
    if kind == "groups":
        return shared_prefix(Shape(sessions=700, rate=22.0, groups=20, **SIZES), 1)
    sizes = {"prefix_tokens": 200, "turn_tokens": 200, "output_tokens": 60}
    return multi_turn(Shape(sessions=200, rate=7.0, groups=5, turns=4, think_s=1.0, **sizes), 1)


@cache
def records(strategy: str, kind: str, ramp: str) -> tuple[Record, ...]:
    given = Scenario(strategy, (SLOW,) * OLD, shape=LARGE, scenes=(PodJoins(at_s=JOINS_S),))
    settings = router_settings({"AIBRIX_EXTPROC_RAMP": ramp}, events=True)
    return tuple(Simulation(given, settings).run(traffic(kind)).records)


def within(found: Sequence[Record], first_s: float, last_s: float) -> list[Record]:
    """Those that came so long after the pod has joined."""
    return [one for one in found if JOINS_S + first_s <= one.arrived_s < JOINS_S + last_s]


def share(found: Sequence[Record]) -> float:
    """How many requests the new pod has, by what each would have if all had as many."""
    return sum(one.pod == OLD for one in found) / len(found) * (OLD + 1)


def slowest_s(found: Sequence[Record]) -> float:
    """The longest time to a first token on the new pod."""
    return max(one.first_token_s - one.arrived_s for one in found if one.pod == OLD)


def mean_s(found: Sequence[Record]) -> float:
    return sum(one.first_token_s - one.arrived_s for one in found) / len(found)


def test_by_requests_alone_a_pod_that_joins_is_flooded_and_the_ramp_prevents_it() -> None:
    flooded = within(records("least-request", "unique", "0"), 0, 5)
    ramped = within(records("least-request", "unique", "30s"), 0, 5)
    before_s = mean_s(within(records("least-request", "unique", "30s"), -5, 0))
    assert share(flooded) > 1.8
    assert slowest_s(flooded) > 10 * before_s
    assert share(ramped) <= 1.1
    assert slowest_s(ramped) < 2.5 * before_s
    assert mean_s(ramped) < mean_s(flooded) / 3


@pytest.mark.parametrize(("kind", "ramp"), [("unique", "0"), ("unique", "10s"), ("groups", "0")])
def test_what_counts_promised_tokens_floods_nobody_with_the_ramp_or_without(
    kind: str, ramp: str
) -> None:
    found = records("prefix-cache", kind, ramp)
    before_s = mean_s(within(found, -5, 0))
    assert mean_s(within(found, 0, 5)) < 1.5 * before_s
    assert slowest_s(within(found, 0, 10)) < 4 * before_s


@pytest.mark.parametrize("strategy", ["least-request", "prefix-cache"])
@pytest.mark.parametrize("kind", ["unique", "groups", "conversations"])
def test_a_pod_that_joins_has_its_share_when_the_ramp_is_over(strategy: str, kind: str) -> None:
    found = records(strategy, kind, "10s")
    assert share(within(found, 0, 10)) > 0.4
    assert 0.85 < share(within(found, 10, 25)) < 1.15
