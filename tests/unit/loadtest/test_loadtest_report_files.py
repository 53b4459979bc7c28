"""What is written: report.json by its schema, report.html by what it must not hold, the table."""

import io
import json
import math
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from aibrix_extproc.loadtest.report.axes import Linear, Logarithmic, amount, logarithmic, short
from aibrix_extproc.loadtest.report.document import document
from aibrix_extproc.loadtest.report.page import page
from aibrix_extproc.loadtest.report.plots import COLOURS, DASHES, Mark
from aibrix_extproc.loadtest.report.report import Report, summarise
from aibrix_extproc.loadtest.report.results import LoadTest, RequestResult, RunResult, Slo
from aibrix_extproc.loadtest.report.rows import shown
from aibrix_extproc.loadtest.report.table import table
from aibrix_extproc.loadtest.report.words import clean, duration, percent
from aibrix_extproc.loadtest.report.write import write
from tests.loadtest_results import STRATEGIES, Shape, a_run, a_test

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/loadtest-report.schema.json").read_text())
HOSTILE = '<img src="https://example.org/x" onerror=alert(1)>[red]\u202e\x1b[2J\udc80&"\''
LIMIT_BYTES = 1_000_000


@cache
def the_report() -> Report:
    return summarise(a_test())


def bare() -> LoadTest:
    """Nothing is known but that requests failed."""
    lost = RequestResult("a", 0, 0.0, 0.0, 1.0, error="HTTP 503")
    runs = [RunResult("random", [lost], 1.0), RunResult("least-request", [], 0.0)]
    return replace(a_test(), runs=runs, null_run=None, slo=Slo())


def hostile() -> LoadTest:
    """Every word from outside is an attack."""
    run = a_run("prefix-cache", Shape(requests=200))
    requests = [replace(r, pod=HOSTILE, error=HOSTILE if r.turn else None) for r in run.requests]
    samples = [replace(s, decisions_by_reason={HOSTILE: int(s.at_s)}) for s in run.samples]
    return replace(
        a_test(),
        model=HOSTILE,
        workload=HOSTILE,
        target=HOSTILE,
        options={HOSTILE: HOSTILE},
        runs=[replace(run, strategy=HOSTILE, requests=requests, samples=samples)],
    )


class Tags(HTMLParser):
    """Every attribute of a page, and its style sheet."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, str, str]] = []
        self.style = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all += [(tag, "", ""), *((tag, key, value or "") for key, value in attrs)]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.style += data


def printed(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table(report))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("test", [a_test(), bare(), hostile()], ids=["usual", "bare", "hostile"])
def test_report_json_keeps_its_schema(test: LoadTest, tmp_path: Path) -> None:
    path, _ = write(summarise(test), tmp_path / "a" / "b")
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    assert [file.name for file in path.parent.iterdir()] != []
    assert {file.name for file in path.parent.iterdir()} == {"report.json", "report.html"}


def test_the_schema_asks_for_every_figure_and_lets_none_be_added_unseen() -> None:
    page = document(the_report())
    del page["runs"][0]["ttft_s"]["p90"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(page, SCHEMA)
    page = document(the_report())
    page["runs"][0]["prompt"] = "secret"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(page, SCHEMA)


def test_bins_of_the_file_hold_every_request() -> None:
    for run in document(the_report())["runs"]:
        assert sum(run["curves"]["ttft"]["count"]) == run["answered"] == 1500
        assert sum(run["curves"]["end_to_end"]["count"]) == run["answered"]


def test_a_hundred_thousand_requests_are_two_small_files(tmp_path: Path) -> None:
    few = a_run("prefix-cache", Shape(requests=2000, pods=300, gaps=2))
    many = [
        replace(r, intended_s=r.intended_s + at, ended_s=r.ended_s + at)
        for at in range(50)
        for r in few.requests
    ]
    run = replace(few, requests=many, duration_s=few.duration_s + 49)
    report = summarise(replace(a_test(), runs=[run]))
    assert report.runs[0].requests == 100_000
    for path in write(replace(report, runs=report.runs * 6), tmp_path):
        assert path.stat().st_size < LIMIT_BYTES, path.name


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    for test in (a_test(), hostile(), bare()):
        html = page(summarise(test))
        html.encode()
        found = Tags()
        found.feed(html)
        names = {name for name, _, _ in found.all}
        assert not names & {"script", "img", "iframe", "object", "embed", "video", "audio", "base"}
        assert not [key for _, key, _ in found.all if key.startswith("on")]
        links = [value for _, key, value in found.all if key in {"src", "href"}]
        assert [link for link in links if not link.startswith("#")] == ["data:,"]
        styles = [value for _, key, value in found.all if key == "style"]
        assert not [style for style in styles if "http" in style or "//" in style]
        assert "url(" not in found.style
        assert "default-src 'none'" in html
        assert "\u202e" not in html
        assert "\x1b" not in html


def test_words_from_outside_are_text_on_the_page() -> None:
    html = page(summarise(hostile()))
    assert "&lt;img src=&quot;https://example.org/x&quot; onerror=alert(1)&gt;" in html
    assert "<img" not in html


def test_every_plot_says_in_words_what_it_shows() -> None:
    html = page(the_report())
    drawings = re.findall(r"<svg [^>]*role=\"img\"[^>]*>", html)
    assert len(drawings) == 4 + 3 * len(STRATEGIES) + 1
    assert all(re.search(r'aria-label="[^"]{40,}"', drawing) for drawing in drawings)
    assert "prefix-cache: p50 92.9 ms, p90 308 ms, p99 619 ms" in html
    others = [drawing for drawing in re.findall(r"<svg [^>]*>", html) if drawing not in drawings]
    assert all('aria-hidden="true"' in drawing for drawing in others)


def test_what_is_not_known_is_said_in_place_of_its_plot() -> None:
    html = page(summarise(bare()))
    assert html.count("Not known") >= 8
    assert "no null run was made" in html
    assert "1 × HTTP 503" in html


def test_strategies_are_told_apart_without_colour() -> None:
    marks = [Mark(number) for number in range(2 * COLOURS)]
    assert len({mark.dash for mark in marks[:COLOURS]}) == len(DASHES) == COLOURS
    assert len({(mark.colour, mark.dash) for mark in marks}) == 2 * COLOURS


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_the_table_fits_80_columns_and_names_every_strategy(number: int) -> None:
    names = [f"prefix-cache-classic-{at}" for at in range(number)]
    (run,) = the_report().runs[-1:]
    report = replace(the_report(), runs=tuple(replace(run, strategy=name) for name in names))
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    for at in range(number):
        assert f"classic-{at}" in text
    assert "…" not in text


def test_the_table_says_the_answer_first_and_then_what_limits_trust() -> None:
    text = printed(the_report())
    assert text.startswith("prefix-cache: mean TTFT 41 % lower than least-request")
    assert text.index("139 ms") < text.index("was not the bottleneck") < text.index("Note: One")
    text = printed(summarise(bare()))
    assert "random failed: 1 × HTTP 503" in text
    assert "Care: No null run was made" in text


def test_each_line_of_the_table_is_what_it_is_called() -> None:
    (run,) = summarise(a_test(("prefix-cache",))).runs
    lines = {
        (group.title, row.label): row.cell(run) for group in shown([run]) for row in group.rows
    }
    for title, found in (
        ("TTFT", run.ttft_s),
        ("Inter-token", run.inter_token_s),
        ("End to end", run.end_to_end_s),
    ):
        for name in ("mean", "p50", "p90", "p99"):
            assert lines[title, name] == duration(getattr(found, name))
    assert lines["Goodput", "within the SLO"] == "24.7/s"
    assert lines["Reuse", "hit ratio"] == percent(run.hit_ratio) == "56.5 %"
    assert lines["Reuse", "as predicted"] == percent(run.predicted_hit_ratio) == "55.5 %"
    assert lines["Reuse", "predicted - actual"] == "-1.1 points"
    assert lines["Busiest pod by mean", "requests"] == "1.28 ×"
    assert lines["Busiest pod by mean", "prompt computed"] == "1.24 ×"
    assert lines["Requests", "offered"] == "25.5/s"
    assert lines["Requests", "sent"] == "1,500"
    assert lines["Generator", "late, p99"] == duration(run.lateness_s.p99)


def test_words_from_outside_do_nothing_on_a_terminal() -> None:
    text = printed(summarise(hostile()), width=200)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0.00 ms"),
        (0.000_42, "0.42 ms"),
        (0.0123, "12.3 ms"),
        (0.4564, "456 ms"),
        (0.9996, "1.00 s"),
        (12.34, "12.3 s"),
        (1234.0, "1,234 s"),
        (-0.002, "-2.00 ms"),
    ],
)
def test_durations_have_three_digits_and_their_unit(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_names_are_cut_and_shares_are_percent() -> None:
    assert len(clean("x" * 500)) == 120
    assert (percent(0.6128), percent(None)) == ("61.3 %", "–")


@pytest.mark.parametrize("high_s", [1.1e-3, 0.1, 1.0, 30.0, 1e3, 1e5])
def test_labels_of_a_logarithmic_axis_have_room(high_s: float) -> None:
    scale = Logarithmic(1e-3, high_s)
    places = [tick.at for tick in scale.ticks()]
    assert all(0 <= place <= 1 for place in places)
    assert all(after - before > 0.12 for before, after in pairwise(places))
    assert len({tick.label for tick in scale.ticks()}) == len(places)


def test_an_axis_is_there_for_one_value_and_for_none() -> None:
    scale = logarithmic([0.5])
    assert scale is not None
    assert 0 < scale.at(0.5) < 1
    assert logarithmic([]) is None
    assert logarithmic([1e-6, 0.5, 0.6], least_s=0.1) == Logarithmic(0.5 / 1.5, 0.6 * 1.5)
    few = Logarithmic(0.3, 0.8).ticks()
    assert [tick.label for tick in few] == ["300 ms", "500 ms", "700 ms"]
    assert [short(value) for value in (2e-5, 5e-3, 1.0, 200.0)] == ["20 µs", "5 ms", "1 s", "200 s"]
    assert [amount(value) for value in (0, 1200, 20_000, 3e6, 2e9)] == [
        "0", "1,200", "20 k", "3 M", "2 G",
    ]  # fmt: skip
    assert Linear(105).marks() == [0, 50, 100]
