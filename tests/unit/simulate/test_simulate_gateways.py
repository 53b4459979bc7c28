"""Several gateways, gateways that restart, traffic past them, and pauses."""

from collections.abc import Sequence

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.over_time import over_time
from aibrix_extproc.simulate.records import NO_GATEWAY, Run
from aibrix_extproc.simulate.scenes import Begins, GatewayRestarts, Pause, PodRestarts, Scene
from aibrix_extproc.workloads.generated import Shape, multi_turn
from aibrix_extproc.workloads.sessions import Session
from tests.unit.simulate.simulated import cached, one, run, scenario

APART_S = 10.0
"""Longer than a prediction lasts and than any request takes."""
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


def matched(found: Run) -> Sequence[int]:
    return [record.matched_tokens for record in found.records]


def repeats(number: int, apart_s: float = APART_S) -> list[Session]:
    return [one(apart_s * n, f"{n}", 16, shared=160) for n in range(number)]


# -- several --------------------------------------------------------------------------------------


def test_requests_meet_all_gateways_and_each_hears_all_events() -> None:
    found = run(scenario("prefix-cache", gateways=3), repeats(12))
    assert {record.gateway for record in found.records} == {0, 1, 2}
    assert matched(found) == cached(found) == [0] + [160] * 11


def test_without_events_a_gateway_knows_only_what_it_sent_itself() -> None:
    found = run(scenario("prefix-cache", gateways=3), repeats(12), events=False)
    met: set[int] = set()
    for record in found.records:
        assert record.matched_tokens == (160 if record.gateway in met else 0)
        met.add(record.gateway)


def test_a_gateway_does_not_see_the_load_that_others_have_sent() -> None:
    sessions = [one(0.001 * n, f"{n}", 16, answer=150) for n in range(40)]
    alone = run(scenario("least-request", pods=4), sessions)
    several = run(scenario("least-request", pods=4, gateways=4), sessions)
    counts = [sorted(pod.requests for pod in found.pods) for found in (alone, several)]
    assert counts[0] == [10, 10, 10, 10] != counts[1]


def test_session_hashing_in_front_keeps_a_session_with_one_gateway() -> None:
    sessions = multi_turn(TRAFFIC, seed=3)
    given = scenario("prefix-cache", pods=4, gateways=4, front="session-hash")
    hashed = run(given, sessions, events=False)
    by_lot = run(scenario("prefix-cache", pods=4, gateways=4), sessions, events=False)
    assert {record.gateway for record in hashed.records} == {0, 1, 2, 3}
    assert sum(cached(hashed)) > 1.2 * sum(cached(by_lot))
    with_events = run(scenario("prefix-cache", pods=4, gateways=4), sessions)
    assert sum(cached(with_events)) > 1.2 * sum(cached(by_lot))


def test_one_seed_is_one_run_with_several_gateways_too() -> None:
    given = scenario("prefix-cache", pods=3, gateways=2, around=0.2)
    first, again = (run(given, multi_turn(TRAFFIC, seed=1)) for _ in range(2))
    assert first.records == again.records


# -- around ---------------------------------------------------------------------------------------


def test_traffic_around_the_gateway_is_known_by_its_events_alone() -> None:
    given = scenario("prefix-cache", pods=1, around=0.5)
    found = run(given, repeats(20))
    past = [record for record in found.records if record.gateway == NO_GATEWAY]
    assert 4 < len(past) < 16
    assert {record.matched_tokens for record in past} == {0}
    decided = [record for record in found.records[1:] if record.gateway != NO_GATEWAY]
    assert {record.matched_tokens for record in decided} == {160}


def test_all_traffic_may_go_around() -> None:
    found = run(scenario("least-request", pods=3, around=1.0), repeats(30, 0.1))
    assert {record.gateway for record in found.records} == {NO_GATEWAY}
    assert {record.pod for record in found.records} == {0, 1, 2}


# -- restarts -------------------------------------------------------------------------------------


def restarted(begins: Begins, **more: object) -> Run:
    scenes: tuple[Scene, ...] = (GatewayRestarts(2.5 * APART_S, begins),)
    return run(scenario("prefix-cache", pods=1, scenes=scenes, **more), repeats(6))


@pytest.mark.parametrize("begins", [Begins.REPLAY, Begins.SNAPSHOT])
def test_a_restarted_gateway_knows_what_the_engines_hold(begins: Begins) -> None:
    assert matched(restarted(begins)) == [0, 160, 160, 160, 160, 160]


def test_without_replay_and_snapshot_it_learns_from_new_events_alone() -> None:
    found = restarted(Begins.NOTHING)
    assert cached(found) == [0, 160, 160, 160, 160, 160]
    # The engine stores the prefix no more, so that no event tells of it.
    assert matched(found) == [0, 160, 160, 0, 0, 0]


def test_a_replay_may_take_longer_than_the_next_request_waits() -> None:
    # Each request stores one batch of its prompt: two are replayed, at one in 8 s.
    found = restarted(Begins.REPLAY, replay_batches_per_s=1 / 8)
    assert matched(found)[:3] == [0, 160, 160]
    assert matched(found)[3] == 0


def test_a_snapshot_of_an_engine_that_restarted_meanwhile_is_not_believed() -> None:
    scenes: tuple[Scene, ...] = (
        PodRestarts(2.4 * APART_S, pod=0, down_s=0.2 * APART_S),
        GatewayRestarts(2.5 * APART_S, Begins.SNAPSHOT),
    )
    found = run(scenario("prefix-cache", pods=2, scenes=scenes), repeats(6))
    assert matched(found) == cached(found)


def test_the_ledger_of_a_restarted_gateway_is_empty() -> None:
    scenes: tuple[Scene, ...] = (GatewayRestarts(0.5),)
    sessions = [one(0.1 * n, f"{n}", 16, answer=200) for n in range(10)]
    given = scenario("least-request", pods=2, scenes=scenes)
    assert all(record.ended_s > record.arrived_s for record in run(given, sessions).records)


def test_only_the_gateway_that_is_named_restarts() -> None:
    scenes: tuple[Scene, ...] = (GatewayRestarts(9.5 * APART_S, Begins.NOTHING, gateway=1),)
    found = run(scenario("prefix-cache", pods=1, gateways=2, scenes=scenes), repeats(24))
    late = found.records[10:]
    assert {record.matched_tokens for record in late if record.gateway == 0} == {160}
    assert {record.matched_tokens for record in late if record.gateway == 1} == {0}


def test_a_gateway_that_is_none_cannot_restart() -> None:
    with pytest.raises(SettingsError, match="no gateway 1"):
        run(scenario(scenes=(GatewayRestarts(1.0, gateway=1),)), repeats(1))


# -- pauses and late events -----------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [1, 30])
def test_nothing_is_forgotten_in_a_long_pause(minutes: int) -> None:
    scenes: tuple[Scene, ...] = (Pause(1.5 * APART_S, 60.0 * minutes),)
    found = run(scenario("prefix-cache", scenes=scenes), repeats(4))
    assert matched(found) == cached(found) == [0, 160, 160, 160]
    assert found.records[2].arrived_s == 2 * APART_S + 60 * minutes


def test_later_turns_wait_for_the_end_of_a_pause() -> None:
    sessions = multi_turn(TRAFFIC, seed=3)
    found = run(scenario("prefix-cache", scenes=(Pause(3.0, 100.0),)), sessions)
    assert not any(3.0 <= record.arrived_s < 103.0 for record in found.records)
    assert any(record.arrived_s >= 103.0 for record in found.records)


@pytest.mark.parametrize("delay_s", [0.01, 1.0, 10.0])
def test_late_events_work_with_restarts_several_gateways_and_traffic_around(delay_s: float) -> None:
    given = scenario(
        "prefix-cache",
        pods=3,
        gateways=2,
        around=0.2,
        event_delay_s=delay_s,
        scenes=(GatewayRestarts(3.0), Pause(6.0, 60.0)),
    )
    found = run(given, multi_turn(TRAFFIC, seed=2))
    assert sum(matched(found)) > 0
    assert all(record.ended_s > record.arrived_s for record in found.records)


# -- over time ------------------------------------------------------------------------------------


def test_hit_ratios_over_time_show_what_a_restart_costs() -> None:
    slices = over_time(restarted(Begins.NOTHING), 3 * APART_S)
    assert [piece.from_s for piece in slices] == [0.0, 3 * APART_S]
    assert [piece.requests for piece in slices] == [3, 3]
    assert [piece.hit_ratio for piece in slices] == [320 / 528, 480 / 528]
    assert [piece.predicted_hit_ratio for piece in slices] == [320 / 528, 0.0]


def test_slices_without_a_request_are_there_too() -> None:
    slices = over_time(run(scenario(), [one(0.0, "a", 16), one(3.0, "b", 16)]), 1.0)
    assert [piece.requests for piece in slices] == [1, 0, 0, 1]
    assert slices[1].ttft_mean_s != slices[1].ttft_mean_s
