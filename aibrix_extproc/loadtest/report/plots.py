"""The plots of the page, as SVG that stretches and labels that do not. Pure.

A drawing has no words in it: it is stretched to the width that there is, while the labels around
it are HTML and keep their size. Each says in words what it shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.loadtest.report.axes import Tick
from aibrix_extproc.loadtest.report.markup import Html, join, tag

WIDTH: Final = 400
HEIGHT: Final = 200
DASHES: Final = ("", "8 4", "3 3", "10 3 2 3", "5 5", "14 3 2 3 2 3")
"""A strategy is known by its dashes as well as by its colour."""
COLOURS: Final = 6

Points = Sequence[tuple[float, float]]
"""Places from 0 to 1, from the left and from the bottom."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How one of several is told from the others."""

    number: int

    @property
    def colour(self) -> str:
        """For CSS."""
        return f"var(--s{self.number % COLOURS})"

    @property
    def dash(self) -> str:
        """For `stroke-dasharray`; other than that of the one with the same colour."""
        return DASHES[(self.number + self.number // COLOURS) % len(DASHES)]

    def sample(self) -> Html:
        """A short line, for a legend."""
        line = tag("line", x1=1, y1=5, x2=31, y2=5, **self.stroke())
        return tag("svg", line, class_="sample", viewBox="0 0 32 10", aria_hidden="true")

    def stroke(self) -> dict[str, object]:
        """Attributes of a line."""
        return {"class_": "line", "style": f"stroke:{self.colour}", "stroke_dasharray": self.dash}


def line(points: Points, mark: Mark, name: str) -> Html:
    """Through the points; `name` is told where a mouse rests."""
    path = "".join(
        f"{'L' if number else 'M'}{WIDTH * x:.1f} {HEIGHT * (1 - y):.1f}"
        for number, (x, y) in enumerate(points)
    )
    if len(points) == 1:
        path += "h4"
    return tag("path", tag("title", name), d=path, **mark.stroke())


def area(bars: Sequence[tuple[float, float, float, float]], fill: str, name: str) -> Html:
    """Bars (left, right, bottom, top; places from 0 to 1) of one kind."""
    path = "".join(
        f"M{WIDTH * left:.1f} {HEIGHT * (1 - bottom):.1f}H{WIDTH * right:.1f}"
        f"V{HEIGHT * (1 - top):.1f}H{WIDTH * left:.1f}Z"
        for left, right, bottom, top in bars
    )
    return tag("path", tag("title", name), d=path, style=f"fill:{fill}", class_="area")


def level(y: float, name: str) -> Html:
    """A dashed line from side to side."""
    at = f"{HEIGHT * (1 - y):.1f}"
    return tag("line", tag("title", name), class_="level", x1=0, x2=WIDTH, y1=at, y2=at)


def frame(
    drawing: Sequence[Html],
    said: str,
    across: Sequence[Tick],
    up: Sequence[Tick],
    *,
    square: bool = False,
) -> Html:
    """A drawing with its axes. `said`: what it shows, for those who do not see it."""
    grid = [
        tag("line", class_="grid", x1=_x(t), x2=_x(t), y1=0, y2=HEIGHT)
        for t in across
        if 0 < t.at < 1
    ]
    grid += [tag("line", class_="grid", x1=0, x2=WIDTH, y1=_y(t), y2=_y(t)) for t in up]
    svg = tag(
        "svg",
        *grid,
        *drawing,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=said,
    )
    labels = [
        tag("span", t.label, class_=f"x{_end(t.at)}", style=f"left:{100 * t.at:.2f}%")
        for t in across
    ]
    labels += [tag("span", t.label, class_="y", style=f"top:{100 * (1 - t.at):.2f}%") for t in up]
    kind = "plot square" if square else "plot" if across else "plot bare"
    return tag("div", svg, tag("div", *labels, class_="labels", aria_hidden="true"), class_=kind)


def figure(title: str, note: str, *inside: object, wide: bool = False) -> Html:
    """A plot, or several, with what it is and how it is read."""
    caption = tag("figcaption", tag("h3", title), tag("p", note, class_="muted"))
    return tag("figure", caption, *inside, class_="wide" if wide else None)


def legend(entries: Sequence[tuple[Html, str]]) -> Html:
    """Samples and their names."""
    return tag("ul", *(tag("li", sample, name) for sample, name in entries), class_="legend")


def panels(entries: Sequence[tuple[Html, str, Html]]) -> Html:
    """Plots of the same kind side by side, each under its sample and name."""
    made = [tag("div", tag("h4", sample, name), plot) for sample, name, plot in entries]
    return tag("div", *made, class_="panels")


def details(summary: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table to be opened."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [tag("tr", tag("th", row[0], scope="row"), *_cells(row[1:])) for row in rows]
    table = tag("table", tag("thead", top), tag("tbody", *body))
    return tag(
        "details",
        tag("summary", summary),
        tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=summary),
    )


def patterns(number: int) -> Html:
    """The fills of `fill`, in a drawing that is not seen."""
    made = []
    for place in range(number):
        colour = f"var(--s{place % COLOURS})"
        hatch = _HATCHES[place % len(_HATCHES)]
        ground = tag("rect", width=8, height=8, style=f"fill:{colour}", opacity=hatch[0])
        lines = tag("path", d=hatch[1], style=f"stroke:{colour};stroke-width:2;fill:none")
        made.append(
            tag(
                "pattern",
                ground,
                lines,
                id=f"fill{place}",
                width=8,
                height=8,
                patternUnits="userSpaceOnUse",
            )
        )
    return tag("svg", tag("defs", *made), class_="defs", aria_hidden="true")


def fill(number: int) -> str:
    """One of the patterns, for CSS."""
    return f"url(#fill{number})"


def swatch(number: int) -> Html:
    """A sample of a pattern, for a legend."""
    box = tag("rect", x=0, y=0, width=32, height=14, style=f"fill:{fill(number)}")
    return tag("svg", box, class_="sample", viewBox="0 0 32 14", aria_hidden="true")


_HATCHES: Final = (
    (0.85, "M0 0"),
    (0.15, "M-2 2L2 -2M0 8L8 0M6 10L10 6"),
    (0.2, "M0 4H8"),
    (0.15, "M-2 6L2 10M0 0L8 8M6 -2L10 2"),
    (0.2, "M4 0V8"),
    (0.1, "M0 4H8M4 0V8"),
    (0.3, "M3 4H5"),
    (0.45, "M0 0"),
    (0.1, "M0 8L8 0M0 0L8 8"),
    (0.5, "M0 1H8M0 5H8"),
)


def _cells(cells: Sequence[str]) -> Html:
    return join(tag("td", cell) for cell in cells)


def _x(tick: Tick) -> str:
    return f"{WIDTH * tick.at:.1f}"


def _y(tick: Tick) -> str:
    return f"{HEIGHT * (1 - tick.at):.1f}"


def _end(at: float) -> str:
    """At the ends a label stays within the drawing."""
    return " start" if at < 0.06 else " end" if at > 0.94 else ""
