"""The least used KV cache is chosen, with what was sent since, and what is not known is said."""

import random
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.cache_use import WANTED_FOR_S, CacheSample, CacheUse
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.strategies import build
from aibrix_extproc.routing.strategies.inputs import lacking
from aibrix_extproc.routing.strategies.least_kv_cache import ASSUMED_CACHE_TOKENS
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Strategy
from aibrix_extproc.settings import Settings

NOW_S, SIZE = 100.0, 100_000


def strategy(seed: int = 1, **changes: float) -> Strategy:
    return build("least-kv-cache", Settings(**changes), random.Random(seed))


def sample(
    used: float, age_s: float = 0.5, size: int | None = SIZE, context_tokens: int = 0
) -> CacheSample:
    return CacheSample(used, NOW_S - age_s, size, context_tokens)


def context(
    count: int, caches: Mapping[int, CacheSample], loads: Mapping[int, Load] | None = None
) -> RouteContext:
    candidates = tuple(
        Candidate(i, Pod("default", f"pod-{i}", "", f"10.0.0.{i}:8000", "m")) for i in range(count)
    )
    return RouteContext(1000, False, candidates, {}, loads or {}, caches=caches, now_s=NOW_S)


def order(decision: Decision) -> list[int]:
    return [scored.candidate.source for scored in decision.ranking]


def tokens(count: int, requests: int = 1) -> Load:
    return Load(requests=requests, context_tokens=count)


def test_the_least_used_cache_is_chosen_whatever_the_ledger_says() -> None:
    caches = {0: sample(0.5), 1: sample(0.1, context_tokens=50), 2: sample(0.9)}
    decision = strategy().rank(context(3, caches, {1: tokens(50, requests=9)}))
    assert order(decision) == [1, 0, 2]
    assert decision.reason == "kv_cache"
    assert [scored.score for scored in decision.ranking] == [0.1, 0.5, 0.9]


def test_equally_used_caches_go_to_the_fewest_requests_and_then_at_random() -> None:
    caches = {i: sample(0.2) for i in range(3)}
    chosen = Counter(
        order(strategy(seed).rank(context(3, caches, {0: Load(requests=1)})))[0]
        for seed in range(100)
    )
    assert set(chosen) == {1, 2}
    assert min(chosen.values()) > 25


def test_what_was_sent_since_counts_by_its_share_of_the_cache() -> None:
    caches = {0: sample(0.30), 1: sample(0.35)}
    assert order(strategy().rank(context(2, caches, {0: tokens(4_000)}))) == [0, 1]
    assert order(strategy().rank(context(2, caches, {0: tokens(6_000)}))) == [1, 0]
    larger = {**caches, 0: sample(0.30, size=10 * SIZE)}
    assert order(strategy().rank(context(2, larger, {0: tokens(6_000)}))) == [0, 1]


def test_what_was_open_at_the_time_of_the_sample_is_in_it_and_what_ended_is_not() -> None:
    caches = {0: sample(0.30, context_tokens=20_000), 1: sample(0.25)}
    loads = {0: tokens(20_000)}
    assert order(strategy().rank(context(2, caches, loads))) == [1, 0]
    assert order(strategy().rank(context(2, caches, {0: tokens(10_000)}))) == [0, 1]
    ended = strategy().rank(context(2, {**caches, 0: sample(0.01, context_tokens=20_000)}))
    assert ended.chosen.score == 0.0  # no cache is used less than not at all


def test_between_two_samples_many_requests_do_not_all_go_to_one_pod() -> None:
    caches = {0: sample(0.10), 1: sample(0.20), 2: sample(0.30), 3: sample(0.31)}
    ledger, rule, chosen = Ledger(600.0), strategy(), Counter[int]()
    for _ in range(40):
        decision = rule.rank(context(4, caches, ledger.loads(0.0)))
        source = decision.chosen.candidate.source
        ledger.reserve(source, 2_000, 0.0, context_tokens=2_000)
        chosen[source] += 1
    # 40 requests of 0.02 each fill all up to about the same: (0.91 + 0.8) / 4
    filled = [caches[i].used + chosen[i] * 0.02 for i in range(4)]
    assert max(filled) - min(filled) < 0.03
    assert chosen[0] > chosen[1] > chosen[2]


def test_without_any_word_of_engines_load_decides_and_says_so() -> None:
    decision = strategy().rank(context(3, {}, {0: tokens(5, 2), 2: tokens(900, 1)}))
    assert (order(decision), decision.reason) == ([1, 2, 0], "kv_cache_unknown")


@pytest.mark.parametrize(("age_s", "reason"), [(4.9, "kv_cache"), (5.1, "kv_cache_unknown")])
def test_a_word_counts_up_to_its_age(age_s: float, reason: str) -> None:
    caches = {0: sample(0.9, age_s), 1: sample(0.1, age_s)}
    decision = strategy(kv_usage_max_age_s=5).rank(context(2, caches, {1: Load(requests=1)}))
    assert decision.reason == reason
    assert order(decision) == ([1, 0] if reason == "kv_cache" else [0, 1])


def test_of_whom_nothing_is_known_the_ledger_stands_in_by_its_own_cache_or_a_usual_one() -> None:
    caches = {0: sample(0.30), 1: sample(0.9, age_s=60.0, size=2 * SIZE)}
    loads = {1: tokens(50_000), 2: tokens(50_000)}
    decision = strategy().rank(context(3, caches, loads))
    assert (order(decision), decision.reason) == ([1, 0, 2], "kv_cache_partly")
    assert [scored.score for scored in decision.ranking] == [0.25, 0.30, 1 / 3]


def test_a_pod_of_which_nothing_is_known_is_neither_starved_nor_flooded() -> None:
    caches, ledger, rule = {0: sample(0.40), 1: sample(0.40)}, Ledger(600.0), strategy()
    chosen = Counter[int]()
    for _ in range(60):
        decision = rule.rank(context(3, caches, ledger.loads(0.0)))
        chosen[decision.chosen.candidate.source] += 1
        ledger.reserve(decision.chosen.candidate.source, 2_000, 0.0, context_tokens=2_000)
    assert chosen[2] == 33  # up to what the others say, then as they
    assert min(chosen[0], chosen[1]) >= 13


def test_where_no_engine_says_its_size_one_is_assumed_so_that_requests_still_spread() -> None:
    caches = {0: sample(0.1, size=None), 1: sample(0.2, size=None)}
    enough = int(0.11 * ASSUMED_CACHE_TOKENS)
    assert order(strategy().rank(context(2, caches, {0: tokens(enough)}))) == [1, 0]
    assert order(strategy().rank(context(2, caches, {0: tokens(enough // 2)}))) == [0, 1]


@given(
    caches=st.dictionaries(
        st.integers(0, 5),
        st.builds(
            CacheSample,
            st.floats(0, 1),
            st.floats(0, NOW_S),
            st.none() | st.integers(1, 10**7),
            st.integers(0, 10**6),
        ),
    ),
    loads=st.dictionaries(st.integers(0, 5), st.builds(tokens, st.integers(0, 10**6))),
)
def test_every_ranking_is_whole_and_in_the_order_of_its_estimates(
    caches: dict[int, CacheSample], loads: dict[int, Load]
) -> None:
    decision = strategy().rank(context(6, caches, loads))
    assert sorted(order(decision)) == list(range(6))
    scores = [scored.score for scored in decision.ranking]
    assert scores == sorted(scores)
    assert min(scores) >= 0
    fresh = sum(NOW_S - one.at_s <= 5.0 for one in caches.values())
    known = {0: "kv_cache_unknown", 6: "kv_cache"}.get(fresh, "kv_cache_partly")
    assert decision.reason == known


def test_a_single_candidate_is_no_choice() -> None:
    assert strategy().rank(context(1, {0: sample(0.9)})).reason == "only"


# -- who wants to know ----------------------------------------------------------------------------


def test_samples_are_wanted_for_a_while_after_a_decision_that_went_by_them() -> None:
    caches, told = CacheUse(), []
    caches.on_wanted = lambda: told.append(1)
    assert not caches.is_wanted(0.0)
    caches.want(10.0)
    caches.want(11.0)
    assert told == [1]
    assert caches.is_wanted(11.0 + WANTED_FOR_S - 0.1)
    assert not caches.is_wanted(11.0 + WANTED_FOR_S)
    caches.want(200.0)
    assert told == [1, 1]


def test_what_is_gone_is_forgotten() -> None:
    caches = CacheUse()
    for source in (1, 2, 3):
        caches.put(source, sample(0.1))
    caches.keep_only({1, 3, 4})
    assert set(caches.samples) == {1, 3}


# -- settings that leave a strategy without what it goes by ----------------------------------------


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, []),
        ({"AIBRIX_EXTPROC_KV_USAGE_INTERVAL": "0"}, []),
        ({"ROUTING_ALGORITHM": "least-kv-cache"}, []),
        (
            {"ROUTING_ALGORITHM": "least-kv-cache", "AIBRIX_EXTPROC_KV_USAGE_INTERVAL": "0"},
            ["AIBRIX_EXTPROC_KV_USAGE_INTERVAL"],
        ),
        (
            {"ROUTING_ALGORITHM": "least-kv-cache", "AIBRIX_EXTPROC_KV_USAGE_INTERVAL": "5s"},
            ["AIBRIX_EXTPROC_KV_USAGE_MAX_AGE"],
        ),
        ({"ROUTING_ALGORITHM": "session-affinity"}, []),
        (
            {
                "ROUTING_ALGORITHM": "session-affinity",
                "AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS": "false",
            },
            ["AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS"],
        ),
    ],
)
def test_a_strategy_that_never_gets_what_it_goes_by_is_named(
    environment: dict[str, str], named: list[str]
) -> None:
    assert [name for name, _ in lacking(Settings.from_environment(environment))] == named
