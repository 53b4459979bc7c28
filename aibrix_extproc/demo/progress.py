"""What a person sees of a run while it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aibrix_extproc.demo.closed_loop import OnOutcome
from aibrix_extproc.demo.summary import ratio
from aibrix_extproc.loadtest.client import Outcome


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


def percent(value: float | None) -> str:
    """`61.3 %`; `-` where it is not known."""
    return "-" if value is None else f"{100 * value:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """`42 ms`; `-` where it is not known."""
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
