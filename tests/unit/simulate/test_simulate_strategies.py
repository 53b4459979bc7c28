"""The strategies that look at more than load and prompt get it from the simulator too."""

from dataclasses import replace

from aibrix_extproc.workloads.generated import Shape, multi_turn
from tests.unit.simulate.simulated import run, scenario

TRAFFIC = Shape(
    sessions=40,
    rate=4.0,
    groups=40,
    prefix_tokens=320,
    turn_tokens=40,
    output_tokens=30,
    turns=4,
    think_s=0.5,
)


def test_the_turns_of_a_session_stay_with_one_pod_and_are_reused_there() -> None:
    sessions = multi_turn(TRAFFIC, seed=3)
    found = run(scenario("session-affinity", pods=4), sessions, events=False)
    by_lot = run(scenario("random", pods=4), sessions, events=False)
    assert sum(r.cached_tokens for r in found.records) > 2 * sum(
        r.cached_tokens for r in by_lot.records
    )


def test_without_a_name_sessions_are_spread_by_load() -> None:
    sessions = [replace(one, id="") for one in multi_turn(TRAFFIC, seed=3)]
    found = run(scenario("session-affinity", pods=4), sessions, events=False)
    named = run(scenario("session-affinity", pods=4), multi_turn(TRAFFIC, seed=3), events=False)
    reused, by_name = (sum(r.cached_tokens for r in one.records) for one in (found, named))
    assert reused < by_name / 2


def test_least_kv_cache_goes_by_what_virtual_engines_say_at_each_tick() -> None:
    shape = replace(TRAFFIC, sessions=60, rate=15.0, output_tokens=120)
    found = run(scenario("least-kv-cache", pods=4), multi_turn(shape, seed=3), events=False)
    counts = [pod.requests for pod in found.pods]
    assert sum(counts) == 240
    assert max(counts) < 1.25 * 60  # nor do all between two ticks go to one pod
    again = run(scenario("least-kv-cache", pods=4), multi_turn(shape, seed=3), events=False)
    assert again.records == found.records
