"""The answer in one sentence, and what limits trust in it."""

import random
from dataclasses import replace

import pytest

from aibrix_extproc.loadtest.report.compare import BATCHES, LEAST_PAIRS, compare
from aibrix_extproc.loadtest.report.doubts import verdict
from aibrix_extproc.loadtest.report.report import Report, summarise
from aibrix_extproc.loadtest.report.results import NullRun, RequestResult, RunResult
from tests.loadtest_results import Shape, a_run, a_test


def run_of(strategy: str, ttft_s: list[float]) -> RunResult:
    requests = [
        RequestResult(f"s{at}", 0, float(at), float(at), at + 9.0, at + one, prompt_tokens=10)
        for at, one in enumerate(ttft_s)
    ]
    return RunResult(strategy, requests, float(len(ttft_s)))


def codes(report: Report) -> dict[str, str]:
    return {doubt.code: doubt.weight for doubt in report.doubts}


def test_the_headline_names_the_best_and_compares_it_with_least_request() -> None:
    found = summarise(a_test())
    assert found.headline.startswith("prefix-cache: mean TTFT 41 % lower than least-request (95 %")
    assert [one.strategy for one in found.comparisons] == ["prefix-cache", "power-of-two"]
    assert all(one.baseline == "least-request" for one in found.comparisons)


def test_where_least_request_is_best_it_is_compared_with_the_second() -> None:
    runs = [
        run_of("random", [4.0] * 200),
        run_of("least-request", [1.0] * 200),
        run_of("prefix-cache", [2.0] * 200),
    ]
    found = summarise(replace(a_test(), runs=runs))
    assert found.headline.startswith("least-request: mean TTFT 50 % lower than prefix-cache")


def test_a_difference_within_its_interval_is_no_difference() -> None:
    same = [a_run("least-request", seed=1), replace(a_run("random", seed=1), strategy="random")]
    found = summarise(replace(a_test(), runs=same))
    assert "no difference in mean TTFT that this test can tell" in found.headline
    assert not found.comparisons[0].tells


def test_a_winner_that_failed_requests_does_not_win_in_silence() -> None:
    failing = a_run("prefix-cache", Shape(failing=0.1))
    found = summarise(replace(a_test(), runs=[a_test().runs[0], failing]))
    assert found.headline.startswith("prefix-cache: mean TTFT")
    assert found.headline.endswith(
        f", but {found.runs[1].errors / 15:.1f} % of its requests failed"
    )


def test_one_run_is_told_without_comparing() -> None:
    found = summarise(a_test(("prefix-cache",)))
    assert found.headline == "prefix-cache: mean TTFT 139 ms, hit ratio 56.5 %"
    dead = RunResult("random", [RequestResult("a", 0, 0.0, 0.0, 1.0, error="HTTP 503")], 1.0)
    assert summarise(replace(a_test(), runs=[dead])).headline == "random: no request was answered"
    with pytest.raises(ValueError, match="without a run"):
        summarise(replace(a_test(), runs=[]))


def test_requests_are_paired_by_session_and_turn() -> None:
    ours = run_of("a", [1.0] * LEAST_PAIRS)
    theirs = run_of("b", [2.0] * LEAST_PAIRS)
    theirs = replace(theirs, requests=[*theirs.requests[1:], replace(theirs.requests[0], turn=7)])
    found = compare(ours, theirs)
    assert found is not None
    assert (found.pairs, found.change, found.low) == (LEAST_PAIRS - 1, -0.5, None)
    assert compare(ours, replace(theirs, requests=[])) is None


def test_requests_without_a_session_are_paired_by_when_they_were_due() -> None:
    both = [
        replace(run, requests=[replace(request, session="") for request in run.requests])
        for run in (run_of("a", [1.0] * 200), run_of("b", [2.0] * 200))
    ]
    found = compare(*both)
    assert found is not None
    assert (found.pairs, found.change, found.low, found.high) == (200, -0.5, -0.5, -0.5)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        chance = random.Random(seed)
        ours = run_of("a", [chance.expovariate(1 / 0.8) for _ in range(10 * BATCHES)])
        theirs = run_of("b", [chance.expovariate(1.0) for _ in range(10 * BATCHES)])
        found = compare(ours, theirs)
        assert found is not None
        held += (found.low or 0) <= -0.2 <= (found.high or 0)
    assert 54 <= held <= 59


@pytest.mark.parametrize(
    ("null_run", "code", "said"),
    [
        (None, "no_null_run", "Not known whether"),
        (NullRun(80, 2.0, 8), "generator_ceiling", "may itself have been the bottleneck"),
        (NullRun(2000, 2.0, 8, errors=3), "null_run_failed", "may itself have been"),
        (NullRun(2000, 2.0, 8), None, "was not the bottleneck: its ceiling is 1,000/s"),
    ],
)
def test_whether_the_generator_was_the_bottleneck_is_said(
    null_run: NullRun | None, code: str | None, said: str
) -> None:
    found = summarise(replace(a_test(), null_run=null_run))
    assert said in verdict(found.runs, found.null_run)
    serious = {code for code, weight in codes(found).items() if weight == "serious"}
    assert serious == ({code} if code else set())


def test_each_trouble_of_a_run_is_said_with_its_strategy() -> None:
    good = a_test(("least-request",), Shape(requests=600))
    (run,) = good.runs
    late = [replace(r, sent_s=r.sent_s + 0.2) for r in run.requests]
    for changed, code in (
        (replace(run, interrupted=True), "interrupted"),
        (a_run("least-request", Shape(requests=600, failing=0.02)), "errors"),
        (replace(run, requests=late), "generator_late"),
        (replace(run, generator_cpu_share=0.95), "generator_cpu"),
        (replace(run, machine_cpu_share=0.99), "machine_cpu"),
        (run_of("x", [0.1] * 300 + [float(at) for at in range(300)]), "not_steady"),
    ):
        found = summarise(replace(good, runs=[changed]))
        (doubt,) = [doubt for doubt in found.doubts if doubt.code == code]
        assert doubt.weight == "serious"
        assert changed.strategy in doubt.text


def test_a_trouble_that_several_strategies_have_is_said_once_and_names_them() -> None:
    test = a_test(shape=Shape(requests=600))
    busy = [replace(run, generator_cpu_share=0.95) for run in test.runs[:2]]
    found = summarise(replace(test, runs=[*busy, test.runs[2]]))
    (doubt,) = [doubt for doubt in found.doubts if doubt.code == "generator_cpu"]
    assert "least-request 95.0 %; power-of-two 95.0 %" in doubt.text
    assert "but it was late or busy" in verdict(found.runs, found.null_run)


def test_what_is_not_known_is_said_once() -> None:
    test = a_test(shape=Shape(requests=200))
    bare = [
        replace(
            run,
            samples=(),
            requests=[replace(r, pod=None, cached_tokens=None) for r in run.requests],
        )
        for run in test.runs
    ]
    found = summarise(replace(test, runs=bare))
    kinds = [doubt.code for doubt in found.doubts]
    for code in ("reuse_untold", "pods_unknown", "decisions_unknown"):
        assert kinds.count(code) == 1
    assert kinds.count("few_requests") == 1


def test_strategies_that_were_not_asked_the_same_are_found_out() -> None:
    test = a_test()
    short = [replace(r, prompt_tokens=r.prompt_tokens // 2) for r in test.runs[0].requests]
    found = summarise(replace(test, runs=[replace(test.runs[0], requests=short), *test.runs[1:]]))
    assert codes(found)["prompts_differ"] == "serious"
