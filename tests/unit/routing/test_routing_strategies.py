"""Each strategy ranks as its rule says, and says why."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.errors import UnknownStrategy
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.strategies import STRATEGIES, build
from aibrix_extproc.routing.types import Candidate, Decision, Load, RouteContext, Strategy
from aibrix_extproc.routing.words import REASONS
from aibrix_extproc.settings import Settings


def strategy(name: str, seed: int = 1, **changes: float) -> Strategy:
    return build(name, Settings(**changes), random.Random(seed))


def candidates(count: int) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(i, Pod("default", f"pod-{i}", f"uid-{i}", f"10.0.0.{i}:8000", "m"))
        for i in range(count)
    )


def context(
    loads: Sequence[Load | int],
    held: Mapping[int, int] | None = None,
    prompt_tokens: int = 1000,
    tokens_known: bool = True,
) -> RouteContext:
    """One candidate for each load; a number is that many requests and nothing else."""
    given_loads = [load if isinstance(load, Load) else Load(requests=load) for load in loads]
    return RouteContext(
        prompt_tokens=prompt_tokens,
        tokens_known=tokens_known,
        candidates=candidates(len(loads)),
        reusable_tokens=held or {},
        loads={i: load for i, load in enumerate(given_loads) if load != Load()},
    )


def order(decision: Decision) -> list[int]:
    return [scored.candidate.source for scored in decision.ranking]


def choices(rule: Strategy, given_context: RouteContext, times: int) -> Counter[int]:
    return Counter(rule.rank(given_context).chosen.candidate.source for _ in range(times))


# -- prefix-cache ---------------------------------------------------------------------------


def test_what_is_likely_held_counts_for_the_cost_and_is_not_said_to_match() -> None:
    known = context([Load(decoding=3), Load()], {0: 160, 1: 64})
    assert order(strategy("prefix-cache").rank(known)) == [1, 0]
    decision = strategy("prefix-cache").rank(replace(known, likely_tokens={0: 200}))
    assert order(decision) == [0, 1]
    assert decision.chosen.reusable_tokens == 160


def test_the_longest_prefix_wins_while_all_are_idle() -> None:
    decision = strategy("prefix-cache").rank(context([0, 0, 0], {0: 160, 1: 640, 2: 320}))
    assert order(decision) == [1, 2, 0]
    assert decision.reason == "prefix"
    assert [s.score for s in decision.ranking] == [360.0, 680.0, 840.0]
    assert [s.reusable_tokens for s in decision.ranking] == [640, 320, 160]


def test_promised_prefill_outweighs_a_shorter_prefix() -> None:
    busy = Load(requests=1, prefill_tokens=700)
    decision = strategy("prefix-cache").rank(context([busy, 0], {0: 640}))
    assert order(decision) == [1, 0]
    assert decision.reason == "load"
    assert [s.score for s in decision.ranking] == [1000.0, 1060.0]


def test_each_decoding_request_costs_its_weight() -> None:
    busy = Load(requests=3, decoding=3)
    held = {0: 160}
    assert (
        strategy("prefix-cache", decode_weight_tokens=64)
        .rank(context([busy, 0], held))
        .ranking[1]
        .score
        == 1000 - 160 + 3 * 64
    )
    free = strategy("prefix-cache", decode_weight_tokens=0).rank(context([busy, 0], held))
    assert order(free) == [0, 1]


def test_each_token_by_which_a_pod_is_crowded_costs_its_weight() -> None:
    """The mean is 10,000 tokens, so that the first pod has 15,000 too many."""
    loads = [Load(context_tokens=30_000), Load(), Load()]
    rule = strategy("prefix-cache", crowding_from=1.5, crowding_weight=0.02)
    decision = rule.rank(context(loads, {0: 200, 1: 64}))
    assert order(decision) == [1, 2, 0]
    assert [s.score for s in decision.ranking] == [936.0, 1000.0, 800.0 + 300.0]


def test_a_pod_that_is_busier_within_bounds_costs_no_more() -> None:
    loads = [Load(context_tokens=14_000), Load(context_tokens=6000)]
    decision = strategy("prefix-cache").rank(context(loads, {0: 200}))
    assert [s.score for s in decision.ranking] == [800.0, 1000.0]


def test_what_a_pod_has_computed_of_its_promises_is_owed_no_more() -> None:
    loads = [Load(requests=1, prefill_tokens=5000), Load(requests=1, prefill_tokens=4000)]
    known = replace(context(loads), computed_tokens={0: 4500.0})
    decision = strategy("prefix-cache").rank(known)
    assert order(decision) == [0, 1]
    assert [s.score for s in decision.ranking] == [1500.0, 5000.0]


def test_a_tie_goes_to_the_fewest_requests() -> None:
    loads = [Load(requests=2, prefill_tokens=64), Load(requests=1, decoding=1)]
    for seed in range(20):
        assert order(strategy("prefix-cache", seed).rank(context(loads))) == [1, 0]


def test_what_is_left_of_a_tie_is_decided_at_random() -> None:
    chosen = choices(strategy("prefix-cache"), context([0, 0, 0, 1], {1: 16, 2: 16}), 200)
    assert set(chosen) == {1, 2}
    assert min(chosen.values()) > 60


def test_without_tokens_load_decides_whatever_is_held() -> None:
    decision = strategy("prefix-cache").rank(
        context([Load(requests=1, prefill_tokens=10), 0], {0: 960}, tokens_known=False)
    )
    assert order(decision) == [1, 0]
    assert decision.reason == "load"
    assert all(scored.reusable_tokens == 0 for scored in decision.ranking)


def test_a_prefix_that_all_hold_is_not_what_decided() -> None:
    decision = strategy("prefix-cache").rank(context([1, 0], {0: 160, 1: 160}))
    assert decision.reason == "load"
    assert decision.chosen.reusable_tokens == 160


def test_ten_equal_requests_at_once_do_not_all_choose_the_same_pod() -> None:
    rule, ledger = strategy("prefix-cache"), Ledger(600.0)
    chosen = Counter()
    for _ in range(10):
        decision = rule.rank(
            RouteContext(1000, True, candidates(5), {0: 320}, ledger.loads(now=0.0))
        )
        source = decision.chosen.candidate.source
        ledger.reserve(source, 1000 - decision.chosen.reusable_tokens, now=0.0)
        chosen[source] += 1
    assert set(chosen) == {0, 1, 2, 3, 4}
    assert max(chosen.values()) <= 3


# -- prefix-cache-classic -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "held", "chosen", "reason"),
    [
        # the longest match, while it is not too busy
        ([0, 0, 0], {1: 320, 2: 160}, 1, "prefix"),
        # of equal matches the least running
        ([2, 1, 0], {0: 320, 1: 320}, 1, "prefix"),
        # mean 2, deviation 1.4: four running are too many, so the next match
        ([4, 1, 1], {0: 640, 1: 160}, 1, "prefix"),
        # no match is calm enough: least running of all
        ([5, 1, 0], {0: 640}, 2, "load"),
        # nothing matches
        ([3, 1, 2], {}, 1, "load"),
        # out of balance: only the least loaded, the longest match of these first
        ([9, 0, 0], {0: 640, 2: 160}, 2, "imbalance"),
        # a difference of exactly the limit is balance still (with two, the busier one is at
        # the mean plus one deviation)
        ([8, 0], {0: 640}, 0, "prefix"),
        ([9, 0], {0: 640}, 1, "imbalance"),
        ([99], {0: 640}, 0, "only"),
    ],
)
def test_the_classic_rule_chooses_as_aibrix_does(
    running: list[int], held: dict[int, int], chosen: int, reason: str
) -> None:
    decision = strategy("prefix-cache-classic").rank(context(running, held))
    assert decision.chosen.candidate.source == chosen
    assert decision.reason == reason


def test_the_classic_rule_ranks_the_rest_by_running_requests() -> None:
    decision = strategy("prefix-cache-classic").rank(context([4, 1, 0, 2], {0: 640, 1: 160}))
    assert order(decision) == [1, 2, 3, 0]


def test_a_wider_deviation_lets_busier_pods_match() -> None:
    table = context([4, 1, 1], {0: 640})
    wide = strategy("prefix-cache-classic", standard_deviation_factor=2.0)
    assert wide.rank(table).chosen.candidate.source == 0
    narrow = strategy("prefix-cache-classic", standard_deviation_factor=1.0)
    assert narrow.rank(table).chosen.candidate.source != 0


def test_the_imbalance_that_closes_the_choice_is_a_setting() -> None:
    table = context([3, 0], {0: 640})
    assert strategy("prefix-cache-classic", imbalance_abs_count=2).rank(table).reason == "imbalance"
    assert strategy("prefix-cache-classic", imbalance_abs_count=3).rank(table).reason == "prefix"


def test_the_classic_rule_spreads_ties_at_random() -> None:
    rule = strategy("prefix-cache-classic")
    assert set(choices(rule, context([1, 1, 1]), 100)) == {0, 1, 2}
    assert set(choices(rule, context([0, 0, 20]), 100)) == {0, 1}


def test_the_classic_rule_without_tokens_takes_the_least_running() -> None:
    decision = strategy("prefix-cache-classic").rank(context([1, 0], {0: 640}, tokens_known=False))
    assert (decision.chosen.candidate.source, decision.reason) == (1, "load")


# -- least-request and random ---------------------------------------------------------------


def test_least_request_counts_requests_only() -> None:
    loads = [Load(requests=2), Load(requests=1, prefill_tokens=9000, decoding=1), Load(requests=3)]
    decision = strategy("least-request").rank(context(loads, {2: 640}))
    assert order(decision) == [1, 0, 2]
    assert decision.reason == "load"
    assert [s.score for s in decision.ranking] == [1.0, 2.0, 3.0]


def test_least_request_breaks_ties_at_random() -> None:
    chosen = choices(strategy("least-request"), context([0, 1, 0]), 400)
    assert set(chosen) == {0, 2}
    assert min(chosen.values()) > 120


def test_random_chooses_each_about_equally_often_whatever_the_load() -> None:
    chosen = choices(strategy("random"), context([50, 0, 0, 0], {1: 640}), 2000)
    assert set(chosen) == {0, 1, 2, 3}
    assert min(chosen.values()) > 400
    assert strategy("random").rank(context([0, 0])).reason == "random"


def test_random_orders_its_alternatives_at_random_too() -> None:
    rule, table = strategy("random"), context([0, 0, 0])
    assert len({tuple(order(rule.rank(table))) for _ in range(200)}) == 6


# -- power-of-two ---------------------------------------------------------------------------


def test_of_two_drawn_the_less_busy_wins_so_the_busiest_is_never_chosen() -> None:
    chosen = choices(strategy("power-of-two"), context([0, 1, 2, 3]), 6000)
    # the pairs are equally likely, and one pod is the less busy in 3, 2, 1 and 0 of all 6
    assert [round(chosen[source] / 1000) for source in range(4)] == [3, 2, 1, 0]
    assert chosen[3] == 0


def test_two_choices_are_of_two_different_pods() -> None:
    assert set(choices(strategy("power-of-two"), context([0, 9]), 200)) == {0}


def test_equally_busy_pods_are_chosen_equally_often() -> None:
    chosen = choices(strategy("power-of-two"), context([4, 4, 4, 4]), 2000)
    assert min(chosen.values()) > 400


def test_only_requests_count_for_the_two_choices() -> None:
    loads = [Load(requests=2), Load(requests=1, prefill_tokens=9000, decoding=1)]
    decision = strategy("power-of-two").rank(context(loads, {0: 640}))
    assert (order(decision), decision.reason) == ([1, 0], "two_choices")
    assert [s.reusable_tokens for s in decision.ranking] == [0, 640]


def test_alternatives_are_choices_of_two_as_well() -> None:
    rule, table = strategy("power-of-two"), context([0, 0, 5, 9])
    orders = Counter(tuple(order(rule.rank(table))) for _ in range(500))
    assert len(orders) > 4  # not one order for all, which would send all retries to one pod
    assert {ranking[-1] for ranking in orders} == {3}
    seconds = Counter(ranking[1] for ranking in orders.elements())
    assert seconds[3] == 0
    assert min(seconds[0], seconds[1]) > 100


def test_many_requests_spread_more_evenly_by_two_choices_than_by_lot() -> None:
    def highest(name: str) -> int:
        rule, ledger = strategy(name), Ledger(600.0)
        for _ in range(640):
            table = RouteContext(10, False, candidates(64), {}, ledger.loads(0.0))
            ledger.reserve(rule.rank(table).chosen.candidate.source, 10, 0.0)
        return max(load.requests for load in ledger.loads(0.0).values())

    assert highest("power-of-two") <= 13 < highest("random")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_the_same_seed_makes_the_same_choices(name: str) -> None:
    table = context([0] * 8)
    one, other = strategy(name, seed=7), strategy(name, seed=7)
    assert [order(one.rank(table)) for _ in range(5)] == [
        order(other.rank(table)) for _ in range(5)
    ]


# -- all of them ----------------------------------------------------------------------------


def test_a_strategy_is_built_by_its_name() -> None:
    assert {name: strategy(name).name for name in STRATEGIES} == {n: n for n in STRATEGIES}


def test_only_what_looks_at_the_prompt_needs_its_tokens() -> None:
    assert {name: strategy(name).needs_tokens for name in STRATEGIES} == {
        "prefix-cache": True,
        "prefix-cache-classic": True,
        "least-request": False,
        "least-kv-cache": False,
        "power-of-two": False,
        "session-affinity": False,
        "random": False,
    }


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownStrategy) as refused:
        strategy("fastest")
    assert refused.value.status == 400
    assert all(name in refused.value.message for name in STRATEGIES)


@given(
    name=st.sampled_from(sorted(STRATEGIES)),
    loads=st.lists(st.builds(Load, *[st.integers(0, 30)] * 3), min_size=1, max_size=8),
    held=st.dictionaries(st.integers(0, 7), st.integers(0, 999)),
    tokens_known=st.booleans(),
)
def test_every_ranking_holds_all_candidates_in_order_of_their_scores(
    name: str, loads: list[Load], held: dict[int, int], tokens_known: bool
) -> None:
    table = context(loads, held, tokens_known=tokens_known)
    decision = strategy(name).rank(table)
    assert sorted(order(decision)) == list(range(len(loads)))
    scores = [scored.score for scored in decision.ranking]
    assert scores == sorted(scores)
    assert decision.strategy == name
    assert decision.reason in REASONS
    assert (decision.reason == "only") == (len(loads) == 1)
    assert all(s.load == loads[s.candidate.source] for s in decision.ranking)


@given(
    running=st.lists(st.integers(0, 12), min_size=2, max_size=6),
    held=st.dictionaries(st.integers(0, 5), st.sampled_from([16, 32, 48])),
)
def test_the_classic_rule_equals_a_plain_reading_of_it(
    running: list[int], held: dict[int, int]
) -> None:
    held = {source: tokens for source, tokens in held.items() if source < len(running)}
    decision = strategy("prefix-cache-classic").rank(context(running, held))
    chosen = decision.chosen.candidate.source
    mean = sum(running) / len(running)
    deviation = (sum((r - mean) ** 2 for r in running) / len(running)) ** 0.5
    calm = [s for s in held if running[s] <= mean + deviation + 1e-9]
    if max(running) - min(running) > 8:
        least = [s for s, r in enumerate(running) if r == min(running)]
        assert chosen in least
        assert held.get(chosen, 0) == max(held.get(s, 0) for s in least)
    elif calm:
        best = max(calm, key=lambda s: (held[s], -running[s]))
        assert (held[chosen], running[chosen]) == (held[best], running[best])
    else:
        assert running[chosen] == min(running)
