"""What a person sees of a simulation."""

import io

from rich.console import Console

from aibrix_extproc.simulate.records import summarise
from aibrix_extproc.simulate.show import progress, table
from tests.unit.simulate.simulated import one, run, scenario


def seen(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with progress(console, "prefix-cache", 120) as on_answer:
        for n in range(120):
            on_answer(float(n))
    return out.getvalue()


def test_a_terminal_shows_answers_and_virtual_time_and_a_pipe_nothing() -> None:
    shown = seen(terminal=True)
    assert "120/120" in shown
    assert "119 virtual s" in shown
    assert seen(terminal=False) == ""


def test_a_figure_that_no_run_has_takes_no_line() -> None:
    out = io.StringIO()
    found = summarise(run(scenario(), [one(0.0, "a", 64)]))
    Console(file=out, width=100).print(table([found]))
    assert "TTFT mean" in out.getvalue()
    assert "inter-token" not in out.getvalue()
    assert "infinite" not in out.getvalue()
