"""A session stays with its candidate: in every process, whoever else comes, unless that is full."""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.rendezvous import Rendezvous
from aibrix_extproc.routing.strategies import build
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Strategy
from aibrix_extproc.settings import Settings

SESSIONS = [f"session-{i}" for i in range(4000)]


def candidate(number: int, rank: int = 0, **more: str) -> Candidate:
    """`more` changes its pod, which is `vllm-<number>` else."""
    fields = {"namespace": "default", "name": f"vllm-{number}", "uid": f"uid-{number}"}
    fields |= {"address": f"10.0.0.{number}:8000", "model": "m"} | more
    return Candidate(number * 8 + rank, Pod(**fields), rank)


def fleet(count: int) -> tuple[Candidate, ...]:
    return tuple(candidate(number) for number in range(count))


def strategy(seed: int = 1, **changes: float) -> Strategy:
    return build("session-affinity", Settings(**changes), random.Random(seed))


def context(
    candidates: Sequence[Candidate], session: str | None, requests: Mapping[int, int] | None = None
) -> RouteContext:
    """`requests`: open ones, by the place of the candidate."""
    loads = {candidates[i].source: Load(requests=n) for i, n in (requests or {}).items()}
    return RouteContext(100, False, tuple(candidates), {}, loads, session=session)


def names(decision: Decision) -> list[str]:
    return [scored.candidate.pod.name for scored in decision.ranking]


def owner(session: str, candidates: Sequence[Candidate]) -> str:
    return Rendezvous().order(session, candidates)[0].pod.key


# -- whose a session is -------------------------------------------------------------------------


def test_a_session_goes_to_the_same_candidate_whatever_else_is_asked() -> None:
    rule, pods = strategy(), fleet(8)
    first = names(rule.rank(context(pods, "alice")))
    for number in range(50):
        rule.rank(context(pods, f"other {number}"))
        rule.rank(context(pods, None))
    again = rule.rank(context(pods[::-1], "alice"))
    assert names(again) == first
    assert again.reason == "session"
    assert [scored.score for scored in again.ranking] == [float(place) for place in range(8)]


def test_the_order_is_a_fixed_function_which_replicas_of_all_versions_share() -> None:
    order = {name: [c.source // 8 for c in Rendezvous().order(name, fleet(5))] for name in NAMED}
    assert order == NAMED


def test_another_process_with_another_hash_seed_finds_the_same_order() -> None:
    program = (
        "from aibrix_extproc.discovery.pods import Pod;"
        "from aibrix_extproc.routing.rendezvous import Rendezvous;"
        "from aibrix_extproc.routing.types import Candidate;"
        "pods = [Candidate(i, Pod('default', f'vllm-{i}', '', '', '')) for i in range(5)];"
        "print([one.source for one in Rendezvous().order('alice', pods)])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "4242"},
        capture_output=True,
        check=True,
    )
    assert told.stdout.decode().strip() == str(NAMED["alice"])


def test_a_pod_that_starts_anew_under_its_name_gets_its_sessions_back() -> None:
    before = fleet(6)
    anew = replace(candidate(2, uid="other", address="10.9.9.9:8000"), source=999)
    after = (*before[:2], anew, *before[3:])
    assert [owner(s, after) for s in SESSIONS] == [owner(s, before) for s in SESSIONS]


def test_a_pod_of_the_same_name_in_another_namespace_is_another() -> None:
    here, there = fleet(6), tuple(candidate(number, namespace="blue") for number in range(6))
    owners = [(owner(s, here).split("/")[1], owner(s, there).split("/")[1]) for s in SESSIONS]
    same = sum(one == other for one, other in owners)
    assert same < len(SESSIONS) / 3


def test_ranks_of_one_pod_share_its_sessions() -> None:
    ranks = [candidate(0, rank) for rank in range(4)]
    shares = Counter(Rendezvous().order(s, ranks)[0].rank for s in SESSIONS)
    assert min(shares.values()) > 0.85 * len(SESSIONS) / 4


def test_sessions_spread_evenly_and_so_do_their_seconds() -> None:
    pods = fleet(10)
    orders = [Rendezvous().order(s, pods) for s in SESSIONS]
    for place in range(3):
        shares = Counter(order[place].source for order in orders)
        assert len(shares) == 10
        # 400 expected, with a standard deviation of 19
        assert all(320 < share < 480 for share in shares.values())
    seconds = Counter(order[1].source for order in orders if order[0].source == 0)
    assert len(seconds) == 9  # who takes over from one pod is spread over all others


# -- who comes and goes -------------------------------------------------------------------------


@given(count=st.integers(1, 30), gone=st.integers(0, 29), prefix=st.text(max_size=20))
def test_only_the_sessions_of_a_pod_that_goes_move_and_each_to_its_second(
    count: int, gone: int, prefix: str
) -> None:
    pods, gone = fleet(count + 1), gone % (count + 1)
    left = (*pods[:gone], *pods[gone + 1 :])
    hashing = Rendezvous()
    for number in range(40):
        before = hashing.order(f"{prefix}{number}", pods)
        after = hashing.order(f"{prefix}{number}", left)
        assert after == [one for one in before if one is not pods[gone]]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 63])
def test_a_pod_that_comes_takes_its_share_and_moves_no_other_session(count: int) -> None:
    before, after, joined = fleet(count), fleet(count + 1), f"default/vllm-{count}"
    moved = [s for s in SESSIONS if owner(s, before) != owner(s, after)]
    assert {owner(s, after) for s in moved} == {joined}
    share = 1 / (count + 1)
    spread = (share * (1 - share) / len(SESSIONS)) ** 0.5
    assert abs(len(moved) / len(SESSIONS) - share) < 4 * spread


def test_a_retry_goes_to_the_pod_that_would_take_over() -> None:
    pods = fleet(6)
    for session in SESSIONS[:200]:
        first, second, *_ = names(strategy().rank(context(pods, session)))
        left = [one for one in pods if one.pod.name != first]
        assert names(strategy().rank(context(left, session)))[0] == second


# -- the bound on load --------------------------------------------------------------------------


def test_a_session_leaves_a_pod_that_is_full_for_its_next_and_comes_back() -> None:
    pods, rule = fleet(4), strategy(session_load_factor=2, session_load_floor=8)
    home = names(rule.rank(context(pods, "alice")))
    own = next(i for i, one in enumerate(pods) if one.pod.name == home[0])
    # 16 open with this one, mean 4, so 8 may be open
    calm = rule.rank(context(pods, "alice", {i: 7 if i == own else 3 for i in range(4)}))
    assert (names(calm), calm.reason) == (home, "session")
    busy = {i: 30 if i == own else 3 for i in range(4)}
    full = rule.rank(context(pods, "alice", busy))
    assert (names(full), full.reason) == ([*home[1:], home[0]], "session_full")
    assert names(rule.rank(context(pods, "alice"))) == home


def test_a_second_that_is_full_too_is_passed_over() -> None:
    pods, rule = fleet(4), strategy(session_load_factor=1, session_load_floor=1)
    home = names(rule.rank(context(pods, "alice")))
    places = {one.pod.name: i for i, one in enumerate(pods)}
    decision = rule.rank(context(pods, "alice", {places[name]: 9 for name in home[:2]}))
    assert names(decision) == [home[2], home[3], home[0], home[1]]


def test_up_to_the_floor_no_pod_is_full() -> None:
    pods, rule = fleet(8), strategy(session_load_factor=1, session_load_floor=8)
    home = names(rule.rank(context(pods, "alice")))
    own = next(i for i, one in enumerate(pods) if one.pod.name == home[0])
    assert names(rule.rank(context(pods, "alice", {own: 7}))) == home
    assert names(rule.rank(context(pods, "alice", {own: 8}))) == [*home[1:], home[0]]


def test_without_a_bound_a_session_stays_however_busy_its_pod_is() -> None:
    pods, rule = fleet(4), strategy(session_load_factor=0)
    home = names(rule.rank(context(pods, "alice")))
    for own in range(4):
        assert names(rule.rank(context(pods, "alice", {own: 10_000}))) == home


@given(
    open_requests=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    factor=st.sampled_from([1.0, 1.25, 2.0, 4.0]),
    floor=st.integers(1, 10),
    session=st.text(min_size=1, max_size=8),
)
def test_no_pod_is_given_more_than_the_bound(
    open_requests: list[int], factor: float, floor: int, session: str
) -> None:
    pods = fleet(len(open_requests))
    rule = strategy(session_load_factor=factor, session_load_floor=floor)
    decision = rule.rank(context(pods, session, dict(enumerate(open_requests))))
    mean = (sum(open_requests) + 1) / len(open_requests)
    assert decision.chosen.load.requests + 1 < max(floor, factor * mean) + 1
    free = [s.candidate for s in decision.ranking if s.load.requests + 1 <= factor * mean]
    assert free == [one for one in Rendezvous().order(session, pods) if one in free]


def test_one_session_that_is_all_of_the_traffic_is_spread_by_the_bound() -> None:
    pods, ledger = fleet(5), Ledger(600.0)
    rule = strategy(session_load_factor=1.25, session_load_floor=1)
    for _ in range(100):
        table = RouteContext(100, False, pods, {}, ledger.loads(0.0), session="the only one")
        ledger.reserve(rule.rank(table).chosen.candidate.source, 100, 0.0)
    assert max(load.requests for load in ledger.loads(0.0).values()) == 25
    assert sum(load.requests for load in ledger.loads(0.0).values()) == 100


@pytest.mark.parametrize("factor", ["0.5", "-1", "much"])
def test_a_factor_below_one_stops_the_start(factor: str) -> None:
    with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_SESSION_LOAD_FACTOR"):
        Settings.from_environment({"AIBRIX_EXTPROC_SESSION_LOAD_FACTOR": factor})


# -- no session ---------------------------------------------------------------------------------


def test_without_a_session_the_least_busy_is_chosen_and_says_so() -> None:
    pods = fleet(3)
    decision = strategy().rank(context(pods, None, {0: 2, 2: 1}))
    assert names(decision) == ["vllm-1", "vllm-2", "vllm-0"]
    assert (decision.strategy, decision.reason) == ("session-affinity", "no_session")
    chosen = Counter(names(strategy(seed).rank(context(pods, None)))[0] for seed in range(60))
    assert len(chosen) == 3


@pytest.mark.parametrize("session", ["alice", None])
def test_a_single_candidate_is_no_choice(session: str | None) -> None:
    assert strategy().rank(context(fleet(1), session)).reason == "only"


NAMED = {
    "alice": [0, 2, 4, 3, 1],
    "10.0.0.3:8000": [2, 1, 3, 0, 4],
    "Übung 7": [4, 0, 3, 1, 2],
}
"""Of five pods `default/vllm-0` to `-4`. It must never change: new versions run beside old ones."""
