"""What a person sees at the end of the demo."""

from rich.table import Table

from aibrix_extproc.demo.report import DemoReport, StrategyResult
from aibrix_extproc.loadtest.show import milliseconds, percent


def table(report: DemoReport) -> Table:
    """One line per strategy, and the yardstick."""
    shown = Table(title="The same requests, by strategy", caption=_caption(report))
    shown.add_column("strategy", no_wrap=True)
    columns = ("requests", "errors", "hit ratio", "predicted", "TTFT p50", "TTFT p90", "per pod")
    for column in columns:
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
        milliseconds(clients.ttft_p50_s),
        milliseconds(clients.ttft_p90_s),
        " / ".join(str(figures.answered) for figures in result.engines.values()),
    )


def _caption(report: DemoReport) -> str:
    return (
        "hit ratio: prompt tokens that the engines reused, by their own count. predicted: what "
        "the processor expected. yardstick: the same requests one after another to one engine "
        f"with an endless cache. Took {report.duration_s:.0f} s."
    )
