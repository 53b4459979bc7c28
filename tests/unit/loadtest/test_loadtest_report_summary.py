"""Figures from what was measured."""

import math
from dataclasses import replace

import pytest

from aibrix_extproc.loadtest.report.results import PodSample, RequestResult, RunResult, Sample, Slo
from aibrix_extproc.loadtest.report.summary import summarise_run
from tests.loadtest_results import Shape, a_run

ONE = RequestResult("a", 0, 1.0, 1.5, 3.0, 2.0, (0.2, 0.4, 0.4), None, 100, 64, 4, "default/p1", 48)
TWO = RequestResult("b", 0, 2.0, 2.0, 5.0, 2.5, (), None, 300, 0, 1, "default/p2", 52)
LOST = RequestResult("c", 0, 3.0, 3.1, 4.0, error="HTTP 503")
RUN = RunResult("prefix-cache", [ONE, TWO, LOST], duration_s=4.0)


def test_latency_counts_from_when_a_request_was_due() -> None:
    found = summarise_run(RUN, Slo())
    assert (found.ttft_s.mean, found.ttft_s.p50, found.ttft_s.p99) == (0.75, 0.5, 1.0)
    assert (found.end_to_end_s.p50, found.end_to_end_s.p99) == (2.0, 3.0)
    assert found.lateness_s.mean == pytest.approx(0.2)
    assert found.inter_token_s.mean == pytest.approx(1 / 3)


def test_failed_requests_are_counted_by_reason_and_have_no_times() -> None:
    found = summarise_run(RUN, Slo())
    assert (found.requests, found.answered, found.errors) == (3, 2, 1)
    assert found.errors_by_reason == {"HTTP 503": 1}
    assert found.curves.ttft.total == found.curves.end_to_end.total == 2
    assert found.answered_per_s == 0.5
    assert found.offered_per_s == 1.0


def test_reuse_is_told_by_usage_and_predictions_are_of_the_same_requests() -> None:
    found = summarise_run(RUN, Slo())
    assert found.hit_ratio == 64 / 400
    assert found.predicted_hit_ratio == 100 / 400
    assert found.predicted_gap == pytest.approx(0.09)
    untold = replace(RUN, requests=[ONE, replace(TWO, cached_tokens=None)])
    found = summarise_run(untold, Slo())
    assert (found.hit_ratio, found.hit_ratio_requests, found.answered) == (0.64, 1, 2)


def test_where_answers_do_not_tell_the_prediction_is_that_of_the_counters() -> None:
    requests = [replace(ONE, matched_tokens=None)]
    samples = [
        Sample(0.0, prompt_tokens=1000, matched_tokens=100),
        Sample(9.0, prompt_tokens=1400, matched_tokens=300),
    ]
    found = summarise_run(replace(RUN, requests=requests, samples=samples), Slo())
    assert found.predicted_hit_ratio == 0.5
    assert found.curves.predicted_actual == ()


def test_a_strategy_that_looks_at_no_prompt_predicts_nothing() -> None:
    assert summarise_run(replace(RUN, looks_at_prompts=False), Slo()).predicted_hit_ratio is None
    samples = [
        Sample(0.0, decisions_by_basis={"prefix": 5, "strategy": 2}),
        Sample(9.0, decisions_by_basis={"prefix": 5, "strategy": 4}),
    ]
    found = summarise_run(replace(RUN, samples=samples), Slo())
    assert found.predicted_hit_ratio is None
    assert found.curves.predicted_actual == ()


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(ttft_s=1.0), 2),
        (Slo(ttft_s=0.9), 1),
        (Slo(inter_token_s=0.34), 2),
        (Slo(inter_token_s=0.33), 1),
        (Slo(ttft_s=0.9, inter_token_s=0.33), 1),
    ],
)
def test_goodput_counts_answers_that_kept_every_limit(slo: Slo, good: int) -> None:
    found = summarise_run(RUN, slo)
    assert found.good_per_s == good / 4.0
    assert found.good_share == good / 3
    assert summarise_run(RUN, Slo()).good_per_s is None


def test_pods_are_those_that_answered_and_those_that_were_read() -> None:
    samples = [
        Sample(0.0, pods={"p1": PodSample(1, 2), "idle": PodSample(0, 0, 10, 5)}),
        Sample(4.0, pods={"p1": PodSample(0, 0), "idle": PodSample(0, 0, 30, 10)}),
    ]
    found = summarise_run(replace(RUN, samples=samples), Slo())
    by_name = {pod.pod: pod for pod in found.pods}
    assert set(by_name) == {"default/p1", "default/p2", "idle"}
    first = by_name["default/p1"]
    assert (first.requests, first.prefill_tokens, first.open_mean, first.open_max) == (
        1,
        36,
        1.5,
        3,
    )
    assert by_name["idle"].requests == 0
    assert found.requests_spread == pytest.approx(1.5)


def test_where_no_answer_names_its_pod_engines_tell_what_they_computed() -> None:
    samples = [
        Sample(0.0, pods={"a": PodSample(0, 0, 10, 5), "b": PodSample(0, 0, 0, 0)}),
        Sample(4.0, pods={"a": PodSample(0, 0, 40, 15), "b": PodSample(0, 0, 10, 0)}),
    ]
    requests = [replace(ONE, pod=None)]
    found = summarise_run(replace(RUN, requests=requests, samples=samples), Slo())
    assert [(pod.pod, pod.requests, pod.prefill_tokens) for pod in found.pods] == [
        ("a", None, 20),
        ("b", None, 10),
    ]
    assert math.isnan(found.requests_spread)
    assert found.prefill_spread == pytest.approx(4 / 3)


def test_a_run_that_never_settles_is_found_out() -> None:
    requests = [
        replace(
            ONE, session=str(at), intended_s=at, first_token_s=at + 0.1 + max(0, at - 100) * 0.1
        )
        for at in range(300)
    ]
    assert summarise_run(replace(RUN, requests=requests), Slo()).steady is False
    assert summarise_run(a_run("prefix-cache"), Slo()).steady is True
    assert summarise_run(RUN, Slo()).steady is None


def test_a_run_of_nothing_has_no_figures_and_no_trouble() -> None:
    found = summarise_run(RunResult("prefix-cache", [], 0.0), Slo(ttft_s=1.0))
    assert math.isnan(found.ttft_s.mean)
    assert (found.hit_ratio, found.offered_per_s, found.good_share, found.pods) == (
        None,
        None,
        None,
        (),
    )


def test_every_request_of_a_larger_run_is_in_every_distribution() -> None:
    shape = Shape(requests=900, failing=0.1)
    run = a_run("prefix-cache", shape)
    found = summarise_run(run, Slo())
    assert found.errors > 50
    assert found.curves.ttft.total == found.curves.end_to_end.total == found.answered
    assert found.curves.inter_token.total == found.answered * shape.gaps
    assert sum(step.requests for step in found.curves.reuse) == found.answered
    assert sum(number for _, _, number in found.curves.predicted_actual) == found.answered
    assert sum(pod.requests or 0 for pod in found.pods) == found.answered
