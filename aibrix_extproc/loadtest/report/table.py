"""What a load test comes to, on a terminal of 80 columns: a column for each strategy."""

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aibrix_extproc.loadtest.report import rows
from aibrix_extproc.loadtest.report.doubts import verdict
from aibrix_extproc.loadtest.report.report import Report
from aibrix_extproc.loadtest.report.summary import RunSummary
from aibrix_extproc.loadtest.report.words import clean, count

COLUMNS: Final = 4
"""Strategies beside each other; more make another table below."""
_WIDTH: Final = 80
_LABELS_WIDTH: Final = 22
"""The first column and what surrounds it."""
_NAMES_WIDTH: Final = 24


def table(report: Report) -> RenderableType:
    """The answer, the figures, and what limits trust in them."""
    parts: list[RenderableType] = [Text(report.headline, style="bold"), Text()]
    runs = report.runs
    parts += [_table(runs[at : at + COLUMNS], runs) for at in range(0, len(runs), COLUMNS)]
    parts += [Text(f"  {_failed(run)}", style="red") for run in report.runs if run.errors]
    parts.append(Text(verdict(report.runs, report.null_run)))
    for doubt in report.doubts:
        serious = doubt.weight == "serious"
        mark = "Care: " if serious else "Note: "
        parts.append(Text(mark + doubt.text, style="yellow" if serious else ""))
    return Group(*parts)


def _table(runs: Sequence[RunSummary], all_runs: Sequence[RunSummary]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    width = min(_NAMES_WIDTH, (_WIDTH - _LABELS_WIDTH) // len(runs) - 2)
    for run in runs:
        shown.add_column(Text(_broken(clean(run.strategy), width)), justify="right", no_wrap=True)
    for group in rows.shown(all_runs):
        shown.add_row(Text(group.title, style="bold"))
        for row in group.rows:
            shown.add_row(f"  {row.label}", *(row.cell(run) for run in runs))
    return shown


def _broken(name: str, width: int) -> str:
    """In lines that fit a column, at hyphens where there are any."""
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    cut = [line[at : at + width] for line in lines for at in range(0, len(line), width)]
    return "\n".join(cut[:4])


def _failed(run: RunSummary) -> str:
    reasons = [f"{count(n)} × {clean(why)}" for why, n in run.errors_by_reason.items()]
    return f"{clean(run.strategy)} failed: {', '.join(reasons)}"
