"""What a person sees at the end of the demo."""

from typing import Final

from rich import box
from rich.table import Table

from aibrix_extproc.demo.progress import milliseconds, percent
from aibrix_extproc.demo.report import DemoReport, StrategyResult

_COLUMNS: Final = (
    "requests",
    "errors",
    "hit\nratio",
    "at de-\ncision",
    "sched-\nuling",
    "TTFT\np50",
    "TTFT\np90",
    "requests\nper pod",
)


def table(report: DemoReport) -> Table:
    """One line per strategy, and the yardstick. Fits 80 columns."""
    shown = Table(
        caption=_caption(report),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    shown.add_column("strategy", no_wrap=True)
    for column in _COLUMNS:
        shown.add_column(column, justify="right", no_wrap=True)
    for result in report.results:
        shown.add_row(*_cells(result))
    one = report.yardstick.clients
    shown.add_section()
    shown.add_row(
        "yardstick", str(one.requests), str(one.errors), percent(report.yardstick.hit_ratio)
    )
    return shown


def _cells(result: StrategyResult) -> tuple[str, ...]:
    clients = result.clients
    return (
        result.strategy,
        str(clients.requests),
        str(clients.errors),
        percent(result.hit_ratio),
        percent(result.predicted_hit_ratio),
        percent(result.scheduled_hit_ratio),
        milliseconds(clients.ttft_p50_s),
        milliseconds(clients.ttft_p90_s),
        "/".join(str(figures.answered) for figures in result.engines.values()),
    )


def _caption(report: DemoReport) -> str:
    return (
        "hit ratio: prompt tokens that the engines reused, by their own count\n"
        "at decision: tokens that the processor then knew the chosen pods to hold\n"
        "scheduling: the same of whole prompts, when the engines took them\n"
        "yardstick: the same, one by one, to one engine with an endless cache\n"
        f"took {report.duration_s:.0f} s"
    )
