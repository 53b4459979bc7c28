"""One trace, many runs: other times at the same rate."""

from collections import Counter

from aibrix_extproc.workloads.jitter import jittered
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

TURN = Turn((Piece("asked", 10),), Piece("said", 1))
TRACE = [Session(3.0 * (n // 20), (TURN,), f"s-{n}") for n in range(400)]
"""20 requests in one heap, every 3 s: Mooncake's clock."""


def test_without_jitter_the_times_are_the_traces_own() -> None:
    assert jittered(TRACE, 0.0, seed=1) == TRACE


def test_each_session_comes_at_most_the_jitter_later_and_none_is_lost() -> None:
    before = {session.id: session for session in TRACE}
    after = jittered(TRACE, 3.0, seed=1)
    assert {session.id for session in after} == set(before)
    for session in after:
        assert 0 <= session.start_s - before[session.id].start_s <= 3.0
        assert session.turns == before[session.id].turns
    starts = [session.start_s for session in after]
    assert starts == sorted(starts)


def test_a_jitter_of_one_tick_spreads_the_heaps_and_keeps_the_rate() -> None:
    starts = [session.start_s for session in jittered(TRACE, 3.0, seed=1)]
    ticks = Counter(int(start // 3.0) for start in starts)
    assert set(ticks.values()) == {20}
    first_third = sum(start % 3.0 < 1.0 for start in starts)
    assert 100 < first_third < 166


def test_a_seed_is_one_run_and_another_seed_another() -> None:
    assert jittered(TRACE, 3.0, seed=1) == jittered(TRACE, 3.0, seed=1)
    assert jittered(TRACE, 3.0, seed=1) != jittered(TRACE, 3.0, seed=2)
