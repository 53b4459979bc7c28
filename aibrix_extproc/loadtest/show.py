"""What a person sees of a run: progress while it goes on, a table at its end."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aibrix_extproc.loadtest.client import Outcome
from aibrix_extproc.loadtest.runner import OnOutcome
from aibrix_extproc.loadtest.summary import Summary, ratio


@contextmanager
def progress(console: Console, name: str, requests: int) -> Iterator[OnOutcome]:
    """A bar that counts outcomes, and shows errors and hit ratio so far.

    Where the console is no terminal, the last state is printed once.
    """
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[errors]} errors, hit ratio {task.fields[hits]}"),
        TimeElapsedColumn(),
    )
    errors = cached = prompt = 0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=requests, errors=0, hits="-")

        def show(outcome: Outcome) -> None:
            nonlocal errors, cached, prompt
            errors += outcome.error is not None
            cached += outcome.cached_tokens or 0
            prompt += outcome.prompt_tokens
            bar.update(task, advance=1, errors=errors, hits=percent(ratio(cached, prompt)))

        yield show


def table(summary: Summary) -> Table:
    """The summary of one run, a line per figure."""
    shown = Table(show_header=False, title="loadtest")
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    shown.add_row("requests", str(summary.requests))
    shown.add_row("errors", str(summary.errors))
    for reason, count in summary.errors_by_reason.items():
        shown.add_row(f"  {reason}", str(count))
    shown.add_row("requests/s", f"{summary.requests_per_s:.1f}")
    shown.add_row("prompt tokens", str(summary.prompt_tokens))
    shown.add_row("hit ratio (usage)", percent(summary.hit_ratio))
    shown.add_row("TTFT p50", milliseconds(summary.ttft_p50_s))
    shown.add_row("TTFT p90", milliseconds(summary.ttft_p90_s))
    shown.add_row("duration p50", milliseconds(summary.duration_p50_s))
    shown.add_row("duration p90", milliseconds(summary.duration_p90_s))
    return shown


def percent(value: float | None) -> str:
    """`61.3 %`; `-` where it is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """`42 ms`; `-` where it is not known."""
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
