"""Pods that join and restart while a simulation runs."""

import argparse
import json
import math
from pathlib import Path

import pytest

from aibrix_extproc.cli import main
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.loop import Simulation
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.scenes import (
    Begins,
    GatewayRestarts,
    Pause,
    PodJoins,
    PodRestarts,
    parse_scene,
)
from tests.unit.simulate.simulated import cached, one, run, scenario

APART_S = 10.0
"""Longer than a prediction lasts and than any request takes: only the caches count."""


def test_a_pod_that_joins_is_chosen_from_then_on_and_begins_cold() -> None:
    sessions = [one(n, f"{n}", 16, shared=160) for n in range(6)]
    found = run(scenario("round-robin", pods=1, scenes=(PodJoins(2.5),)), sessions)
    assert [record.pod for record in found.records] == [0, 0, 0, 1, 0, 1]
    assert cached(found) == [0, 160, 160, 0, 160, 160]
    assert [pod.requests for pod in found.pods] == [4, 2]


def test_the_router_learns_of_a_joined_pods_blocks_by_its_events() -> None:
    sessions = [one(0.0, "long", 1000, answer=200)]
    sessions += [one(1.0 + APART_S * n, f"{n}", 16, shared=160) for n in range(3)]
    found = run(scenario("prefix-cache", pods=1, scenes=(PodJoins(0.5),)), sessions)
    assert [record.pod for record in found.records] == [0, 1, 1, 1]
    assert [record.matched_tokens for record in found.records] == [0, 0, 160, 160]


def test_a_pod_that_restarts_has_lost_its_cache_and_the_router_notices() -> None:
    sessions = [one(APART_S * n, f"{n}", 16, shared=160) for n in range(4)]
    scenes = (PodRestarts(1.5 * APART_S, pod=0), PodRestarts(1.6 * APART_S, pod=1))
    found = run(scenario("prefix-cache", scenes=scenes), sessions)
    assert cached(found) == [0, 160, 0, 160]
    assert [record.matched_tokens for record in found.records] == [0, 160, 0, 160]


def test_without_events_the_router_believes_in_a_cache_that_is_gone() -> None:
    sessions = [one(APART_S * n, f"{n}", 16, shared=160) for n in range(3)]
    scenes = (PodRestarts(1.5 * APART_S, pod=0), PodRestarts(1.6 * APART_S, pod=1))
    found = run(scenario("prefix-cache", scenes=scenes), sessions, events=False)
    assert [record.matched_tokens for record in found.records] == [0, 160, 160]
    assert cached(found) == [0, 160, 0]


def test_what_a_restarted_pod_had_not_answered_is_sent_again_to_another() -> None:
    restart_s = 0.1
    given = scenario("round-robin", scenes=(PodRestarts(restart_s, pod=0),))
    found = run(given, [one(0.0, "a", 64, answer=100)])
    (record,) = found.records
    assert (record.pod, record.resent, record.arrived_s) == (1, 1, 0.0)
    alone = run(scenario("round-robin", pods=1), [one(0.0, "a", 64, answer=100)]).records[0]
    assert alone.ended_s > restart_s
    assert record.first_token_s == pytest.approx(restart_s + alone.first_token_s)
    assert record.ended_s == pytest.approx(restart_s + alone.ended_s)


def test_a_pod_that_is_down_gets_nothing_until_it_is_back() -> None:
    given = scenario("round-robin", scenes=(PodRestarts(1.5, pod=0, down_s=2.0),))
    found = run(given, [one(n, f"{n}", 16) for n in range(7)])
    assert [record.pod for record in found.records] == [0, 1, 1, 1, 0, 1, 0]


def test_late_events_of_the_process_before_do_not_reach_the_new_one() -> None:
    sessions = [one(0.0, "a", 16, shared=160), one(20.0, "b", 16, shared=160)]
    given = scenario(
        "prefix-cache", scenes=(PodRestarts(1.0, 0), PodRestarts(2.0, 1)), event_delay_s=5.0
    )
    found = run(given, sessions)
    assert [record.matched_tokens for record in found.records] == [0, 0]


def test_load_of_lost_requests_is_given_back() -> None:
    scenes = (PodRestarts(0.1, pod=0), PodRestarts(5.0, pod=1))
    given = scenario("least-request", scenes=scenes)
    simulation = Simulation(given, router_settings({}, events=True))
    found = simulation.run([one(0.0, f"{n}", 64, answer=50) for n in range(8)])
    assert sum(record.resent for record in found.records) == 4
    assert all(math.isfinite(record.ended_s) for record in found.records)


@pytest.mark.parametrize(
    ("scenes", "pods", "told"),
    [
        ((PodRestarts(1.0, pod=2),), 2, "they are 0 to 1"),
        ((PodJoins(2.0), PodRestarts(1.0, pod=2)), 2, "they are 0 to 1"),
        ((PodRestarts(0.0, pod=0, down_s=9.0),), 1, "no pod is left"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(
    scenes: tuple[PodJoins | PodRestarts, ...], pods: int, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        run(scenario(pods=pods, scenes=scenes), [one(0.0, "a", 16)])


def test_a_pod_that_has_joined_may_restart() -> None:
    scenes = (PodJoins(1.0), PodRestarts(2.0, pod=2))
    assert run(scenario(scenes=scenes), [one(0.0, "a", 16)]).records


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        ("pod-joins@60", PodJoins(60.0)),
        ("pod-restarts@1.5:3", PodRestarts(1.5, 3)),
        ("pod-restarts@60:3:20", PodRestarts(60.0, 3, 20.0)),
        ("gateway-restarts@60:snapshot", GatewayRestarts(60.0, Begins.SNAPSHOT)),
        ("gateway-restarts@60:nothing:1", GatewayRestarts(60.0, Begins.NOTHING, 1)),
        ("pause@60:600", Pause(60.0, 600.0)),
    ],
)
def test_scenes_are_read_from_the_command_line(text: str, scene: object) -> None:
    assert parse_scene(text) == scene


@pytest.mark.parametrize(
    "text",
    [
        *("pod-joins", "pod-joins@", "pod-joins@-1", "pod-joins@1:2", "pod-restarts@1", "rain@3"),
        *("gateway-restarts@1", "gateway-restarts@1:warm", "gateway-restarts@1:replay:-1"),
        *("pause@1", "pause@1:2:3"),
        *("pod-restarts@1:-1", "pod-restarts@1:0:nan", "pod-restarts@1:0:1:1"),
    ],
)
def test_what_is_no_scene_is_told_how_one_is_written(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="pod-joins@SECONDS"):
        parse_scene(text)


def test_the_scenes_of_a_run_stand_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    command = ["simulate", "unique", "--sessions", "4", "--rate", "9", "--pods", "2"]
    command += ["--scene", "pod-joins@0.1", "--scene", "pod-restarts@0.2:0"]
    assert main([*command, "--strategy", "round-robin", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["options"]["scene"] == [
        {"kind": "pod-joins", "at_s": 0.1},
        {"kind": "pod-restarts", "at_s": 0.2, "pod": 0, "down_s": 0.0},
    ]
