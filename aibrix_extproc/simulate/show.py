"""What a person sees of a simulation: progress while it runs, a table at its end."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from aibrix_extproc.simulate.records import Summary

_EVERY: Final = 50
"""Answers between two updates of the bar."""


@contextmanager
def progress(console: Console, name: str, requests: int) -> Iterator[Callable[[float], None]]:
    """A bar that counts answers and shows the virtual time; nothing where there is no terminal."""
    if not console.is_terminal:
        yield lambda now: None
        return
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[now]:.0f} virtual s in"),
        TimeElapsedColumn(),
    )
    answered = 0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=requests, now=0.0)

        def on_answer(now: float) -> None:
            nonlocal answered
            answered += 1
            if answered % _EVERY == 0 or answered == requests:
                bar.update(task, completed=answered, now=now)

        yield on_answer


def table(found: Sequence[Summary]) -> Table:
    """A column for each run, a line for each figure."""
    shown = Table(title="simulate")
    shown.add_column("")
    for summary in found:
        shown.add_column(summary.strategy, justify="right")
    for label, figure in _LINES:
        cells = [figure(summary) for summary in found]
        if any(cell != "-" for cell in cells):
            shown.add_row(label, *cells)
    return shown


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:,.1f} ms"


_LINES: Final[tuple[tuple[str, Callable[[Summary], str]], ...]] = (
    ("requests", lambda s: f"{s.requests:,}"),
    ("virtual time", lambda s: f"{s.duration_s:,.0f} s"),
    ("hit ratio (engines)", lambda s: _share(s.hit_ratio)),
    ("  as predicted", lambda s: _share(s.predicted_hit_ratio)),
    ("  of one infinite cache", lambda s: _share(s.bound_hit_ratio)),
    ("TTFT mean", lambda s: _ms(s.ttft_s.mean)),
    ("TTFT p50", lambda s: _ms(s.ttft_s.p50)),
    ("TTFT p99", lambda s: _ms(s.ttft_s.p99)),
    ("end to end mean", lambda s: _ms(s.end_to_end_s.mean)),
    ("end to end p50", lambda s: _ms(s.end_to_end_s.p50)),
    ("end to end p99", lambda s: _ms(s.end_to_end_s.p99)),
    ("inter-token mean", lambda s: _ms(s.inter_token_s.mean)),
    ("inter-token p99", lambda s: _ms(s.inter_token_s.p99)),
    ("open requests", lambda s: f"{s.open_requests:.1f}"),
    ("busiest pod: requests", lambda s: f"{s.requests_spread:.2f} × mean"),
    ("busiest pod: prefill", lambda s: f"{s.prefill_spread:.2f} × mean"),
    ("busy, mean and most", lambda s: f"{_share(s.busy_share_mean)}, {_share(s.busy_share_max)}"),
    ("preemptions", lambda s: f"{s.preemptions:,}"),
    ("met the SLO", lambda s: _share(s.goodput)),
)
