"""`report.html`: one page that needs nothing else, not even a script. Pure but for its style sheet.

The answer comes first, then the figures, what limits trust in them, the plots, and how it was made.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final

from aibrix_extproc.loadtest.report import drawings, plots, rows
from aibrix_extproc.loadtest.report.document import started
from aibrix_extproc.loadtest.report.doubts import verdict
from aibrix_extproc.loadtest.report.markup import Html, join, tag, text
from aibrix_extproc.loadtest.report.plots import Mark
from aibrix_extproc.loadtest.report.report import Report
from aibrix_extproc.loadtest.report.results import Slo
from aibrix_extproc.loadtest.report.rows import Group
from aibrix_extproc.loadtest.report.summary import RunSummary
from aibrix_extproc.loadtest.report.words import NOTHING, clean, count, duration, percent

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself sees to it that the page asks for nothing."""
WORDS: Final = (
    ("TTFT", "time to first token: from when a request was due until its first piece of text came"),
    ("inter-token", "between two pieces of an answer that follow each other"),
    ("end to end", "from when a request was due until its answer was complete"),
    ("hit ratio", "prompt tokens that engines reused, of all; by the usage field of their answers"),
    ("as predicted", "what the processor expected to be reused when it decided"),
    (
        "late",
        "from when a request was due until it left: the generator's own, part of the rest",
    ),
    ("busiest pod", "what the pod with the most had, divided by the mean of all pods"),
    ("p50, p90, p99", "half, 90 % and 99 % of the values are not above it"),
)


def page(report: Report) -> str:
    """The whole file."""
    title = f"Load test: {report.workload}"
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<link rel="icon" href="data:,">'),
        tag("title", title),
        tag("style", Html(_style())),
    )
    body = tag(
        "body",
        tag("a", "Skip to figures", class_="skip", href="#figures"),
        plots.patterns(len(drawings.REASONS) + 1),
        tag("header", *_header(report, title)),
        tag("main", *_main(report)),
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


@cache
def _style() -> str:
    return (resources.files(__package__) / "page.css").read_text(encoding="utf-8")


def _header(report: Report, title: str) -> list[Html]:
    serious = sum(doubt.weight == "serious" for doubt in report.doubts)
    link = tag("a", f"{serious} {'reason' if serious == 1 else 'reasons'} for care", href="#trust")
    return [
        tag("h1", title),
        tag("p", f"{report.model} at {report.target}, {started(report)}", class_="muted"),
        tag("p", report.headline, class_="answer"),
        tag(
            "p",
            verdict(report.runs, report.null_run),
            *([" ", link] if serious else []),
            class_="verdict",
            data_serious="yes" if serious else None,
        ),
    ]


def _main(report: Report) -> list[Html]:
    return [
        tag(
            "div",
            tag("section", *_figures(report), id="figures", aria_labelledby="figures-head"),
            tag("section", *_trust(report), id="trust", aria_labelledby="trust-head"),
            class_="top",
        ),
        tag(
            "section",
            tag("h2", "Plots", id="plots-head"),
            tag("div", *drawings.all_figures(report.runs), class_="plots"),
            aria_labelledby="plots-head",
        ),
        tag("section", *_made(report), id="made", aria_labelledby="made-head"),
    ]


def _figures(report: Report) -> list[Html]:
    runs = report.runs
    columns = [
        tag("th", Mark(place).sample(), clean(run.strategy), scope="col", class_="name")
        for place, run in enumerate(runs)
    ]
    top = tag("thead", tag("tr", tag("td"), *columns))
    groups = [_group(group, runs) for group in rows.shown(runs)]
    table = tag("table", top, *groups)
    found = [
        tag("h2", "Figures", id="figures-head"),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Figures"),
    ]
    if report.slo != Slo():
        found.append(tag("p", _slo(report.slo), class_="muted"))
    return found


def _group(group: Group, runs: Sequence[RunSummary]) -> Html:
    title = tag("th", group.title, colspan=len(runs) + 1, scope="rowgroup")
    lines = [
        tag(
            "tr",
            tag("th", row.label, scope="row"),
            *(
                tag("td", row.cell(run), data_run=place, data_figure=row.path)
                for place, run in enumerate(runs)
            ),
        )
        for row in group.rows
    ]
    return tag("tbody", tag("tr", title, class_="group"), *lines)


def _slo(slo: Slo) -> str:
    limits = []
    if slo.ttft_s is not None:
        limits.append(f"its TTFT is at most {duration(slo.ttft_s)}")
    if slo.inter_token_s is not None:
        limits.append(f"the mean of its own gaps at most {duration(slo.inter_token_s)}")
    return f"Within the SLO: a request that is answered in full, where {' and '.join(limits)}."


def _trust(report: Report) -> list[Html]:
    found = [tag("h2", "What limits trust", id="trust-head")]
    if report.doubts:
        items = [
            tag(
                "li",
                tag("strong", "Care. " if doubt.weight == "serious" else "Note. "),
                doubt.text,
                data_weight=doubt.weight,
                data_code=doubt.code,
            )
            for doubt in report.doubts
        ]
        found.append(tag("ul", *items, class_="doubts"))
    else:
        found.append(tag("p", "Nothing was found that does.", class_="muted"))
    failed = [
        [clean(run.strategy), clean(reason), count(number), percent(number / run.requests)]
        for run in report.runs
        for reason, number in run.errors_by_reason.items()
    ]
    if failed:
        head = ["strategy", "reason", "requests", "of all"]
        found.append(plots.details("Failed requests by reason", head, failed[:100]))
    return found


def _made(report: Report) -> list[Html]:
    environment, null_run = report.environment, report.null_run
    facts = [
        ("workload", report.workload),
        ("seed", str(report.seed)),
        ("model", report.model),
        ("target", report.target),
        ("started", started(report)),
        ("version", environment.version),
        ("generator", f"Python {environment.python}, {environment.cores} cores, "
                      f"{environment.machine}"),
    ]  # fmt: skip
    if null_run is not None:
        facts.append(
            ("null run", f"{count(null_run.requests)} requests of {null_run.chunks} pieces in "
                         f"{duration(null_run.duration_s)}: {null_run.requests_per_s:,.0f}/s"),
        )  # fmt: skip
    facts += [(name, _value(value)) for name, value in report.options.items()]
    return [
        tag("h2", "How it was made", id="made-head"),
        _list(facts),
        tag("h2", "Words"),
        _list(WORDS),
        tag(
            "p", "The same figures, and those behind the plots, are in report.json.", class_="muted"
        ),
    ]


def _value(value: str | float | bool | None) -> str:
    if value is None:
        return NOTHING
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _list(entries: Sequence[tuple[str, str]]) -> Html:
    return tag(
        "dl",
        join(tag("div", tag("dt", clean(name)), tag("dd", text(said))) for name, said in entries),
    )
