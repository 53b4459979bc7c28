"""The demo holds, or says which target was missed."""

import json

from rich.console import Console

from aibrix_extproc.demo import report, show
from aibrix_extproc.demo.report import DemoReport, StrategyResult, Yardstick
from aibrix_extproc.demo.summary import Summary
from aibrix_extproc.stack.scrape import EngineFigures

TOKENS = 90_000


def engines(hit_ratio: float, answered: tuple[int, ...]) -> dict[str, EngineFigures]:
    share = TOKENS // len(answered)
    return {
        f"engine-{n}": EngineFigures(share, int(share * hit_ratio), count)
        for n, count in enumerate(answered)
    }


def result(
    strategy: str,
    hit_ratio: float,
    answered: tuple[int, ...] = (52, 52, 52),
    errors: int = 0,
    prompt_tokens: int = TOKENS,
    known: float | None = 0.0,
) -> StrategyResult:
    """`known`: at scheduling, from what the engines say; None: nothing."""
    scheduled = None if known is None else hit_ratio + known
    reasons = {"HTTP 503": errors} if errors else {}
    figures = {"prompt_tokens": prompt_tokens, "ttft_p50_s": 0.111, "ttft_p90_s": 0.283}
    clients = Summary(sum(answered), errors, reasons, 5.0, **figures)
    return StrategyResult(strategy, clients, engines(hit_ratio, answered), 0.5, scheduled)


def demo(*results: StrategyResult, errors: int = 0) -> DemoReport:
    given = {one.strategy: one for one in results}
    held = (result("random", 0.4), result("least-request", 0.5), result("prefix-cache", 0.75))
    yardstick = Yardstick(
        Summary(156, errors, prompt_tokens=TOKENS), EngineFigures(TOKENS, int(TOKENS * 0.8), 156)
    )
    return DemoReport(tuple(given.get(one.strategy, one) for one in held), yardstick, 20.0)


def test_a_demo_that_reaches_every_target_holds() -> None:
    assert report.shortfalls(demo()) == []
    assert report.to_json(demo())["holds"] is True


def test_less_than_nine_tenths_of_the_yardstick_is_a_miss() -> None:
    (line,) = report.shortfalls(demo(result("prefix-cache", 0.71)))
    assert "71.0%, less than 72.0%" in line
    assert "yardstick" in line


def test_less_than_half_again_of_random_is_a_miss() -> None:
    (line,) = report.shortfalls(demo(result("random", 0.51)))
    assert "75.0%, less than 76.5%" in line
    assert "random" in line


def test_a_failed_request_of_any_strategy_is_a_miss() -> None:
    (line,) = report.shortfalls(demo(result("least-request", 0.5, errors=2)))
    assert line == "least-request: 2 requests failed (2 × HTTP 503)"
    assert report.shortfalls(demo(errors=1)) == ["yardstick: 1 requests failed"]


def test_a_pod_with_more_than_six_tenths_is_a_miss() -> None:
    (line,) = report.shortfalls(demo(result("prefix-cache", 0.75, (95, 30, 31))))
    assert "one pod got 61%" in line
    assert report.shortfalls(demo(result("prefix-cache", 0.75, (93, 31, 32)))) == []


def test_other_requests_than_the_yardsticks_are_a_miss() -> None:
    (line,) = report.shortfalls(demo(result("random", 0.4, prompt_tokens=TOKENS - 1)))
    assert "not the same requests" in line


def test_what_is_known_at_scheduling_is_within_a_point_of_the_engines_own_or_missed() -> None:
    assert report.shortfalls(demo(result("prefix-cache", 0.75, known=0.009))) == []
    (line,) = report.shortfalls(demo(result("prefix-cache", 0.75, known=0.011)))
    assert "76.1%" in line
    (line,) = report.shortfalls(demo(result("prefix-cache", 0.75, known=-0.011)))
    assert "73.9%" in line
    (line,) = report.shortfalls(demo(result("prefix-cache", 0.75, known=None)))
    assert "nothing is known" in line


def test_a_strategy_whose_engines_answered_nothing_has_no_share() -> None:
    idle = result("random", 0.0, (0, 0, 0))
    assert idle.largest_share == 0
    assert idle.hit_ratio == 0


def test_the_report_is_plain_json_with_the_engines_own_figures() -> None:
    page = json.loads(json.dumps(report.to_json(demo())))
    assert page["strategies"]["prefix-cache"]["engines"]["engine-1"] == {
        "requests": 52,
        "prompt_tokens": 30_000,
        "hit_tokens": 22_500,
    }
    assert page["yardstick"]["hit_ratio"] == 0.8


def test_the_table_fits_80_columns_uncut() -> None:
    console = Console(width=80, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(show.table(demo()))
    text = capture.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "52/52/52" in text
