"""A view as a screen of a given size, drawn with rich.

Owns the layout: which columns fit, how many rows, what is left out and said to be. Knows no
terminal and no source: a view, the choices of whoever looks, and a size in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aibrix_extproc.watch import text
from aibrix_extproc.watch.rows import Row, Sort, View, ordered, totals, troubles

_STYLES: Final = {
    "EXACT": "green",
    "PARTIAL": "yellow",
    "SYNCING": "cyan",
    "CONNECTING": "red",
    "LOST": "bold red",
    "off": "dim",
}
_KEYS: Final = "q quit  s sort  n/p page  w who holds what  l log"
_NAME_WIDTH: Final = (10, 32)


@dataclass(frozen=True, slots=True)
class Choices:
    """What whoever looks has chosen."""

    sort: Sort = Sort.STATE
    page: int = 0
    holdings: bool = True
    log: bool = False
    with_tokens: bool = False


@dataclass(frozen=True, slots=True)
class _Column:
    """One figure of a row."""

    title: str
    width: int
    show: Callable[[Row], str]
    sort: Sort | None = None


COLUMNS: Final = (
    _Column("state", 10, lambda r: r.state + ("!" if r.stale else ""), Sort.STATE),
    _Column("last", 8, lambda r: "-" if r.sequence is None else str(r.sequence)),
    _Column("miss", 4, lambda r: text.count(r.missing), Sort.MISSING),
    _Column("bat/s", 5, lambda r: text.rate(r.batches_per_s), Sort.BATCHES),
    _Column("+blk/s", 6, lambda r: text.rate(r.stored_per_s), Sort.STORED),
    _Column("-blk/s", 6, lambda r: text.rate(r.removed_per_s), Sort.REMOVED),
    _Column("held", 7, lambda r: text.count(r.held), Sort.HELD),
    _Column("lag", 6, lambda r: text.span(r.lag_s), Sort.LAG),
    _Column("bytes/s", 8, lambda r: text.size(r.bytes_per_s), Sort.BYTES),
    _Column("bad", 4, lambda r: text.count(sum(r.undecodable.values()))),
    _Column("clr", 4, lambda r: text.count(r.cleared)),
    _Column("orph", 5, lambda r: text.count(r.parked if r.orphans is None else r.orphans)),
    _Column("gaps", 4, lambda r: text.count(r.gaps)),
    _Column("rest", 4, lambda r: text.count(r.restarts)),
    _Column("idle", 6, lambda r: text.span(r.idle_s)),
    _Column("size", 5, lambda r: ",".join(map(str, r.block_sizes)) or "-"),
    _Column("medium", 8, lambda r: ",".join(r.media) or "-"),
    _Column("adapters", 20, lambda r: ",".join(r.adapters) or "-"),
)
"""In the order in which they are given up, last first, where the terminal is narrow."""


def screen(view: View, choices: Choices, width: int, height: int) -> RenderableType:
    """The whole screen: at most `height` lines of `width` characters."""
    head = _head(view, choices, width)
    foot = [Text(_KEYS, style="dim", overflow="ellipsis", no_wrap=True)]
    room = max(1, height - len(head) - len(foot))
    wrong = [Text(f"! {line}", style="red") for line in troubles(view)]
    shown = [Text(line, style="dim") for line in view.log] if choices.log else []
    if choices.holdings and view.holdings is not None and view.holdings.blocks:
        said = text.holdings_lines(view.holdings, 5, with_tokens=choices.with_tokens)
        shown = [Text(line) for line in said] + shown
    few = room // 4
    wrong = _cut(wrong, few)
    rows = ordered(view.rows, choices.sort)
    table_needs = len(rows) + 1
    below = _last_or_first(shown, max(few, room - len(wrong) - table_needs), choices.log)
    space = max(2, room - len(wrong) - len(below))
    body = _table(rows, choices, width, space)
    lines: list[RenderableType] = [*head, *body, *wrong, *below]
    for line in (*wrong, *below):
        line.no_wrap, line.overflow = True, "ellipsis"
    return Stack(*lines[: height - len(foot)], *foot)


def pages(view: View, height: int) -> int:
    """More than there are: the last page is shown for any that is beyond it."""
    return max(1, len(view.rows) // max(1, height // 4) + 1)


def _head(view: View, choices: Choices, width: int) -> list[RenderableType]:
    total = totals(view.rows)
    first = (
        f"{text.clock(view)}  {text.states(view)}  "
        f"{'end of the recording' if view.ended else 'for ' + text.span(view.elapsed_s)}"
    )
    second = (
        f"{text.rate(total.batches_per_s)} batches/s  {text.size(total.bytes_per_s)}/s  "
        f"+{text.rate(total.stored_per_s)} -{text.rate(total.removed_per_s)} blocks/s  "
        f"{text.count(total.held)} held  lag {text.span(total.lag_max_s)}  by {choices.sort}"
    )
    lines = [Text(first, style="bold"), Text(second)]
    lines += [Text(note, style="yellow") for note in view.notes[:2]]
    for one in lines:
        one.no_wrap, one.overflow = True, "ellipsis"
    return list(lines)


def _table(rows: list[Row], choices: Choices, width: int, space: int) -> list[RenderableType]:
    """The table in `space` lines, its title line and what it leaves out with it."""
    if not rows:
        return [Text("no source yet", style="dim")]
    shown, rest = rows, ""
    if len(rows) > space - 1:
        a_page = max(1, space - 2)
        pages_there = -(-len(rows) // a_page)
        page = min(choices.page, pages_there - 1)
        shown = rows[page * a_page : (page + 1) * a_page]
        more = len(rows) - len(shown)
        rest = f"and {more} more (page {page + 1} of {pages_there}: n, p)"
    name_width = min(max(_NAME_WIDTH[0], *(len(row.name) for row in rows)), _NAME_WIDTH[1])
    if width < 100:
        name_width = min(name_width, 15)
    columns = _columns_that_fit(width - name_width)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("source", width=name_width, no_wrap=True, overflow="ellipsis")
    for column in columns:
        left = column.title in ("state", "adapters", "medium")
        table.add_column(
            Text(column.title, "underline" if column.sort is choices.sort else ""),
            width=column.width,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if left else "right",
        )
    for row in shown:
        figures = [Text(column.show(row)) for column in columns]
        figures[0].stylize(_STYLES.get(row.state, ""))
        table.add_row(Text(row.name), *figures)
    return [table, Text(rest, style="dim")] if rest else [table]


def _columns_that_fit(width: int) -> list[_Column]:
    columns: list[_Column] = []
    for column in COLUMNS:
        width -= column.width + 1
        if width < 0 and columns:
            break
        columns.append(column)
    return columns


def _cut(lines: list[Text], most: int) -> list[Text]:
    """The first ones, and how many more there are."""
    if len(lines) <= most:
        return lines
    kept = lines[: max(0, most - 1)]
    return [*kept, Text(f"! and {len(lines) - len(kept)} more in trouble", style="red")]


def _last_or_first(lines: list[Text], most: int, last: bool) -> list[Text]:
    if len(lines) <= most:
        return lines
    return lines[-most:] if last and most else lines[:most]
