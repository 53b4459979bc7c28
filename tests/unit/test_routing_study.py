"""The routing study compares what it ran, seed by seed, and says what was missed."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.routing.cases import CASES, FIRST_SEED, SETS
from benchmarks.routing.judge import best, gathered, ratio, table, verdicts

FIGURES = (
    "hit_ratio",
    "ttft_s",
    "ttft_p99_s",
    "end_to_end_s",
    "end_to_end_p99_s",
    "inter_token_p99_s",
    "goodput",
    "requests_spread",
)


def row(strategy: str, seed: int, ttft_s: float = 1.0, e2e_p99_s: float = 1.0) -> dict[str, Any]:
    plain: dict[str, Any] = dict.fromkeys(FIGURES, 0.5)
    plain |= {"set": "held-out", "case": "c", "strategy": strategy, "seed": seed}
    return plain | {"ttft_s": ttft_s, "end_to_end_p99_s": e2e_p99_s}


def by_seed(values: Mapping[int, float]) -> dict[int, dict[str, Any]]:
    return {seed: {"ttft_s": value} for seed, value in values.items()}


def test_a_ratio_is_of_the_means_over_the_seeds_that_both_have() -> None:
    found = ratio(by_seed({1: 1.0, 2: 3.0, 3: 50.0}), by_seed({1: 2.0, 2: 6.0}), "ttft_s")
    assert found.value == found.low == found.high == 0.5


def test_an_interval_is_as_wide_as_the_seeds_differ() -> None:
    one = by_seed({seed: 1.0 + 0.1 * (seed % 2) for seed in range(10)})
    other = by_seed(dict.fromkeys(range(10), 1.0))
    found = ratio(one, other, "ttft_s")
    assert found.value == pytest.approx(1.05)
    assert 1.0 <= found.low < 1.03
    assert 1.07 < found.high <= 1.1


def test_what_is_common_to_a_seed_does_not_widen_the_interval() -> None:
    one = by_seed({seed: 2.0 * 3**seed for seed in range(10)})
    other = by_seed({seed: 3.0**seed for seed in range(10)})
    found = ratio(one, other, "ttft_s")
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)


def test_the_best_is_a_rule_that_can_be_had() -> None:
    rows = [row("sticky", 1, 0.9), row("least-request", 1, 1.5), row("oracle", 1, 0.5)]
    assert best(gathered(rows, "held-out")["c"]) == "sticky"


def test_the_verdict_names_the_limit_that_is_missed() -> None:
    rows = [
        row("prefix-cache", 1, ttft_s=1.1, e2e_p99_s=1.0),
        row("least-request", 1, ttft_s=2.0, e2e_p99_s=1.0),
        row("sticky", 1, ttft_s=1.0, e2e_p99_s=2.0),
        row("oracle", 1, ttft_s=1.0),
    ]
    cases = gathered(rows, "held-out")
    first, second, third = map(str, verdicts(cases["c"]))
    assert first.startswith("MISSED: mean TTFT by that of sticky, the best other 1.100")
    assert second.startswith("held: mean TTFT by the oracle's 1.100")
    assert third.startswith("held: p99 end to end by least-request's 1.000")


def test_the_table_begins_with_the_lowest_ttft() -> None:
    rows = [row("least-request", 1, 2.0), row("prefix-cache", 1, 1.0)]
    lines = table(gathered(rows, "held-out")["c"])
    assert [line.split("`")[1] for line in lines[2:]] == ["prefix-cache", "least-request"]


def test_no_case_is_in_two_sets_under_one_name_and_seeds_do_not_overlap() -> None:
    names = [(case.set, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    judged = [FIRST_SEED[name] for name in SETS if name != "light"]
    assert all(b - a >= 100 for a, b in pairwise(judged))
