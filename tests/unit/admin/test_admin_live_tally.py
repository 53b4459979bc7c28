"""Decisions added up by the second."""

import pytest

from aibrix_extproc.admin.live.rows import Hits
from aibrix_extproc.admin.live.tally import HISTORY_S, HITS_S, RECENT_S, Tally
from aibrix_extproc.decisions import DecisionRecord
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored

NOW = 1_000_000.5
POD = Pod("default", "a", "u", "10.0.0.1:8000", "m")


def record(
    at_s: float = NOW, prompt: int = 1000, reused: int = 0, source: int = 1,
    took_s: float = 0.002, known: bool | str = True,
) -> DecisionRecord:  # fmt: skip
    scored = Scored(Candidate(source, POD), reused, Load(), 0.0)
    decision = Decision("prefix-cache", "prefix", (scored,))
    return DecisionRecord(at_s, took_s, "id", None, "m", prompt, known, None, False, 1, decision)


def test_the_hit_ratio_of_a_source_is_that_of_its_tokens() -> None:
    tally = Tally()
    tally.add([record(prompt=1000, reused=1000), record(prompt=3000), record(source=2)], NOW)
    assert tally.hits(NOW) == {1: Hits(2, 4000, 1000), 2: Hits(1, 1000, 0)}
    assert tally.hits(NOW)[1].share == 0.25


def test_a_prompt_whose_tokens_were_not_known_counts_as_a_pick_alone() -> None:
    tally = Tally()
    tally.add([record(known=False), record(known="prefix", reused=500)], NOW)
    assert tally.hits(NOW) == {1: Hits(2, 1000, 500)}


def test_what_is_too_old_counts_no_more() -> None:
    tally = Tally()
    tally.add([record(NOW - HISTORY_S - 1), record(NOW - HITS_S - 1), record(NOW)], NOW)
    assert len(tally.points()) == 2
    assert tally.hits(NOW)[1].picks == 1
    tally.add([], NOW + HITS_S + 1)
    assert tally.hits(NOW + HITS_S + 1) == {}
    tally.add([], NOW + HISTORY_S + 1)
    assert tally.points() == []


def test_a_clock_that_was_set_back_leaves_nothing_in_the_future() -> None:
    tally = Tally()
    tally.add([record(NOW + 3600)], NOW + 3600)
    tally.add([record(NOW)], NOW)
    assert [point["t"] for point in tally.points()] == [int(NOW)]


def test_a_point_is_one_second_and_only_those_touched_are_told() -> None:
    tally = Tally()
    assert tally.add([record(NOW - 1, 100, 50), record(NOW - 1, 300, 50)], NOW) == [int(NOW) - 1]
    assert tally.add([record(NOW, 100, 100)], NOW) == [int(NOW)]
    assert tally.points([int(NOW)]) == [
        {"t": int(NOW), "n": 1, "hit": 1.0, "p50_ms": 2.0, "p99_ms": 2.0}
    ]
    assert [point["hit"] for point in tally.points()] == [0.25, 1.0]


def test_latencies_are_nearest_ranks() -> None:
    tally = Tally()
    tally.add([record(took_s=ms / 1000) for ms in range(1, 102)], NOW)
    totals = tally.totals(NOW, tally.hits(NOW).values())
    assert (totals["p50_ms"], totals["p99_ms"]) == (51.0, 100.0)


def test_totals_are_of_the_last_seconds() -> None:
    tally = Tally()
    tally.add([record(NOW - RECENT_S - 2, reused=1000), record(NOW), record(NOW)], NOW)
    totals = tally.totals(NOW, tally.hits(NOW).values())
    assert totals["per_s"] == pytest.approx(0.2)
    assert totals["picks"] == 3
    assert totals["hit"] == pytest.approx(0.3333)


def test_nothing_decided_is_no_latency_and_no_ratio() -> None:
    assert Tally().totals(NOW, ()) == {
        "per_s": 0.0, "picks": 0, "hit": None, "p50_ms": None, "p99_ms": None
    }  # fmt: skip
