"""The screen at every size: nothing sticks out, and what is left out is said."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aibrix_extproc.watch import text
from aibrix_extproc.watch.holdings import Group, Holdings, Pair
from aibrix_extproc.watch.loop import pressed
from aibrix_extproc.watch.rows import Row, Sort, View, ordered
from aibrix_extproc.watch.screen import COLUMNS, Choices, screen
from tests.support import data_path

HOLDINGS = Holdings(
    sources=3,
    blocks=100,
    shared=40,
    groups=(Group(("a", "b"), 40, 7, "m", (0, 39), (11, 12, 13)), Group(("c",), 60, 9, "m")),
    pairs=(Pair("a", "b", 40, 0.8),),
    orphans={},
    by_medium={"GPU": 140},
)


def row(name: str, **figures: object) -> Row:
    values: dict[str, object] = {
        "state": "EXACT", "sequence": 12345, "missing": 0, "gaps": 0, "messages": 9,
        "batches_per_s": 1.0, "stored_per_s": 2.0, "removed_per_s": 0.0, "bytes_per_s": 1234.0,
        "held": 999, "lag_s": 0.002,
    }  # fmt: skip
    return Row(name=name, **(values | figures))  # type: ignore[arg-type]


def view(*rows: Row, **more: object) -> View:
    return View(rows=rows, now=1_795_500_000.0, elapsed_s=61.0, **more)  # type: ignore[arg-type]


def drawn(seen: View, choices: Choices, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(screen(seen, choices, width, height), end="")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


MANY = view(
    *(row(f"pod-{n}", state="LOST" if n == 150 else "EXACT", held=n) for n in range(200)),
    holdings=HOLDINGS,
    notes=("recording to a.jsonl: 12 messages",),
    log=tuple(f"line {n}" for n in range(50)),
)


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60), (300, 100)])
@pytest.mark.parametrize("log", [False, True])
def test_no_size_is_too_small_for_two_hundred_sources(size: tuple[int, int], log: bool) -> None:
    width, height = size
    lines = drawn(MANY, Choices(log=log), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)
    assert "q quit" in lines[-1]
    assert any("200 sources: 199 EXACT, 1 LOST" in line for line in lines) or width < 80


def test_what_does_not_fit_is_counted_and_the_worst_is_first() -> None:
    lines = drawn(MANY, Choices(), 80, 24)
    assert next(line for line in lines if line.startswith("pod-")).split()[:2] == [
        "pod-150",
        "LOST",
    ]
    shown = sum(line.startswith("pod-") for line in lines)
    assert any(line.startswith(f"and {200 - shown} more (page 1 of ") for line in lines)
    assert "! pod-150: LOST" in lines


def test_pages_show_each_source_once() -> None:
    choices, names = Choices(sort=Sort.NAME), []
    for _page in range(60):
        lines = drawn(MANY, choices, 80, 24)
        names += [line.split()[0] for line in lines if line.startswith("pod-")]
        if "pod-199" in names:
            break
        choices = pressed(choices, "n", MANY, 24)
    assert names == [f"pod-{n}" for n in range(200)]
    beyond = drawn(MANY, replace(choices, page=500), 80, 24)
    assert any(line.startswith("pod-199") for line in beyond)


def test_a_wide_terminal_shows_every_figure_and_a_narrow_one_the_first() -> None:
    seen = view(row("a", block_sizes=(16, 32), media=("CPU", "GPU"), adapters=("x", "y"), idle_s=3))
    wide, narrow = (
        "\n".join(drawn(seen, Choices(), 200, 60)),
        "\n".join(drawn(seen, Choices(), 80, 24)),
    )
    for figure in ("16,32", "CPU,GPU", "x,y", "3.0 s", "1.2 kB", "12345", "999", "2 ms"):
        assert figure in wide
    for figure in ("12345", "999", "2 ms", "EXACT"):
        assert figure in narrow
    assert "x,y" not in narrow


def test_who_holds_what_can_be_hidden_and_tells_no_tokens_unless_asked() -> None:
    seen = view(row("a"), holdings=HOLDINGS)
    shown = "\n".join(drawn(seen, Choices(), 120, 30))
    assert "in 2 of 3: 40 blocks, at 0-39 of a prompt (a, b)" in shown
    assert "a and b: 40 blocks in both, 80% of the smaller" in shown
    assert "11 12 13" not in shown
    told = "\n".join(drawn(seen, Choices(with_tokens=True), 120, 30))
    assert "tokens 11 12 13" in told
    assert "who holds what" not in "\n".join(drawn(seen, Choices(holdings=False), 120, 30)[:-1])


def test_keys_choose() -> None:
    choices = Choices(sort=Sort.HELD)
    assert pressed(choices, "s", MANY, 24).sort is Sort.NAME
    assert pressed(choices, "p", MANY, 24).page == 0
    assert pressed(choices, "w", MANY, 24).holdings is False
    assert pressed(choices, "l", MANY, 24).log is True
    assert pressed(choices, "x", MANY, 24) == choices


def test_names_are_ordered_as_people_count_and_figures_largest_first() -> None:
    rows = [row("pod-10", held=1), row("pod-9", held=5), row("x", held=None)]
    assert [one.name for one in ordered(rows, Sort.NAME)] == ["pod-9", "pod-10", "x"]
    assert [one.name for one in ordered(rows, Sort.HELD)] == ["pod-9", "pod-10", "x"]
    states = ["EXACT", "off", "PARTIAL", "SYNCING", "CONNECTING", "LOST"]
    rows = [row(state, state=state) for state in states]
    assert [one.name for one in ordered(rows, Sort.STATE)] == [
        "LOST", "CONNECTING", "SYNCING", "PARTIAL", "off", "EXACT",
    ]  # fmt: skip


def test_a_name_is_no_markup() -> None:
    lines = drawn(view(row("[red]a[/red]")), Choices(), 80, 24)
    assert any(line.startswith("[red]a[/red]") for line in lines)


def test_figures_are_short_at_every_size() -> None:
    assert [text.count(n) for n in (None, 0, 12345, 1_234_567)] == ["-", "0", "12,345", "1.2 M"]
    assert [text.rate(n) for n in (None, 0, 0.44, 12.6, 12_345)] == ["-", "0", "0.4", "13", "12 k"]
    assert [text.size(n) for n in (None, 999, 1500, 2e6, 3e9)] == [
        "-", "999 B", "1.5 kB", "2.0 MB", "3.0 GB",
    ]  # fmt: skip
    spans = [text.span(n) for n in (None, 0.003, 2.5, 61, 600, 7200, 3 * 86_400, 1e9)]
    assert spans == ["-", "3 ms", "2.5 s", "61 s", "10 min", "2 h", "3 d", "years"]


def test_the_page_explains_every_column_and_every_key() -> None:
    page = (data_path("").parents[1] / "docs" / "watch.md").read_text()
    assert [one.title for one in COLUMNS if f"`{one.title}`" not in page] == []
    assert [key for key in "qsnpwl" if f"`{key}`" not in page] == []
