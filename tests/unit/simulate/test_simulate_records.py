"""Figures from what was written down."""

from collections import Counter

import pytest

from aibrix_extproc.figures import Distribution
from aibrix_extproc.simulate.records import NO_GATEWAY, PodTotals, Record, Run, Slo, summarise


def record(pod: int, arrived_s: float, first_s: float, ended_s: float, cached: int) -> Record:
    return Record(pod, arrived_s, 100, 10, 64, cached, first_s, ended_s)


def a_run() -> Run:
    return Run(
        strategy="x",
        records=[record(0, 0.0, 1.0, 2.0, 32), record(1, 1.0, 4.0, 6.0, 16)],
        gaps=Counter({100: 98, 200: 1, 5000: 1}),
        pods=[PodTotals(3, 0.5, 40, 1), PodTotals(1, 0.1, 0, 2)],
        duration_s=6.0,
        open_area_s=7.0,
        bound_tokens=150,
    )


def test_the_figures_are_those_of_the_records() -> None:
    found = summarise(a_run())
    assert found.hit_ratio == 48 / 200
    assert found.predicted_hit_ratio == 128 / 200
    assert found.bound_hit_ratio == 150 / 200
    assert found.ttft_s == Distribution(mean=2.0, p50=1.0, p90=3.0, p99=3.0)
    assert found.end_to_end_s == Distribution(mean=3.5, p50=2.0, p90=5.0, p99=5.0)
    assert found.inter_token_s.p50 == pytest.approx(1e-3)
    assert found.inter_token_s.p99 == pytest.approx(2e-3)
    assert found.inter_token_s.mean == pytest.approx(1.5e-3)
    assert (found.requests_spread, found.prefill_spread) == (1.5, 2.0)
    assert (found.busy_share_max, found.busy_share_mean) == (0.5, 0.3)
    assert (found.preemptions, found.open_requests) == (3, 7 / 6)


def test_goodput_is_the_share_that_keeps_both_limits() -> None:
    # First tokens after 1 s and 3 s; then 9 gaps in 1 s and in 2 s.
    assert summarise(a_run()).goodput is None
    for ttft_s, inter_token_s, share in ((3.0, 0.3, 1.0), (2.9, 0.3, 0.5), (3.0, 0.2, 0.5)):
        assert summarise(a_run(), Slo(ttft_s, inter_token_s)).goodput == share
    assert summarise(a_run(), Slo(0.9, 1.0)).goodput == 0.0


def test_an_answer_of_one_token_has_no_gap_that_could_be_too_long() -> None:
    run = a_run()
    for each in run.records:
        each.output_tokens, each.ended_s = 1, each.first_token_s
    assert summarise(run, Slo(9.0, 0.0)).goodput == 1.0


def test_what_no_gateway_decided_counts_in_no_prediction() -> None:
    run = a_run()
    run.records[1].gateway, run.records[1].matched_tokens = NO_GATEWAY, 0
    assert summarise(run).predicted_hit_ratio == 0.64
    run.records[0].gateway = NO_GATEWAY
    assert summarise(run).predicted_hit_ratio is None


def test_what_does_not_exist_is_null_in_json() -> None:
    run = a_run()
    run.gaps.clear()
    page = summarise(run).to_json()
    assert page["inter_token_s"] == {"mean": None, "p50": None, "p90": None, "p99": None}
    assert page["ttft_s"]["mean"] == 2.0
    run.looks_at_prompts = False
    assert summarise(run).to_json()["predicted_hit_ratio"] is None
