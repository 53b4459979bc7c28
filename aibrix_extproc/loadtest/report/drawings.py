"""Which plots the page has, and what each shows of the runs. Pure."""

from collections.abc import Callable, Sequence
from typing import Final

from aibrix_extproc.loadtest.report import axes, plots
from aibrix_extproc.loadtest.report.axes import Linear, Tick
from aibrix_extproc.loadtest.report.bins import SQUARE, Bins
from aibrix_extproc.loadtest.report.markup import Html, tag
from aibrix_extproc.loadtest.report.plots import Mark
from aibrix_extproc.loadtest.report.pods import PodSummary
from aibrix_extproc.loadtest.report.summary import RunSummary
from aibrix_extproc.loadtest.report.words import NOTHING, clean, count, duration, percent

Runs = Sequence[RunSummary]
_SHARES: Final = tuple(Tick(share, f"{100 * share:.0f} %") for share in (0, 0.5, 0.9, 0.99))
_QUARTERS: Final = tuple(Tick(share / 4, f"{25 * share} %") for share in range(5))
REASONS: Final = (
    "prefix_match",
    "prefix_match_skipped",
    "least_request_fallback",
    "two_choices",
    "session",
    "session_full",
    "no_session",
    "random",
    "imbalance",
)
"""Each has its own fill, in this order; all others share the one after them."""
_MOST_PODS_LISTED: Final = 100
_LEFT_OF_MIDDLE: Final = 50.0
"""What is less than the median by this factor stands at the left end of its axis."""


def all_figures(runs: Runs) -> list[Html]:
    """In the order of the page."""
    return [
        _distribution(
            runs, "Time to first token", lambda run: run.curves.ttft, "requests", "ttft_s"
        ),
        _distribution(
            runs, "Inter-token", lambda run: run.curves.inter_token, "gaps", "inter_token_s"
        ),
        _distribution(
            runs, "End to end", lambda run: run.curves.end_to_end, "requests", "end_to_end_s"
        ),
        _hit_ratio(runs),
        _pods(runs, "Requests by pod", "requests answered", lambda pod: pod.requests),
        _pods(runs, "Prompt computed by pod", "prompt tokens", lambda pod: pod.prefill_tokens),
        _predicted(runs),
        _decisions(runs),
    ]


def _entries(runs: Runs) -> list[tuple[Html, str]]:
    return [(Mark(place).sample(), clean(run.strategy)) for place, run in enumerate(runs)]


def _nothing(title: str, why: str) -> Html:
    return plots.figure(title, "", tag("p", why, class_="none"))


def _distribution(
    runs: Runs, title: str, bins: Callable[[RunSummary], Bins], what: str, figure: str
) -> Html:
    curves = [bins(run).cumulative() for run in runs]
    # Pieces that were read together have gaps of nothing: they would take most of the axis.
    middle_s = min((_median(curve) for curve in curves if curve), default=0.0)
    scale = axes.logarithmic((x for curve in curves for x, _ in curve), middle_s / _LEFT_OF_MIDDLE)
    if scale is None:
        return _nothing(title, f"Not known: there were no {what}.")
    drawing, said = [], []
    for place, (run, curve) in enumerate(zip(runs, curves, strict=True)):
        found = getattr(run, figure)
        words = f"{clean(run.strategy)}: " + ", ".join(
            f"{name} {duration(getattr(found, name))}" for name in ("p50", "p90", "p99")
        )
        if curve:
            points = [*((scale.at(x), y) for x, y in curve), (1.0, 1.0)]
            drawing.append(plots.line(points, Mark(place), words))
        said.append(words)
    return plots.figure(
        title,
        f"Share of {what} that took less. Logarithmic.",
        plots.frame(drawing, f"{title}. {'. '.join(said)}.", scale.ticks(), _SHARES),
        plots.legend(_entries(runs)),
    )


def _median(curve: Sequence[tuple[float, float]]) -> float:
    return next(at_s for at_s, share in curve if share >= 0.5)


def _hit_ratio(runs: Runs) -> Html:
    title = "Hit ratio over time"
    high_s = max((run.duration_s for run in runs), default=0.0)
    if not any(run.curves.reuse for run in runs) or not high_s:
        return _nothing(title, "Not known: no answer says how much of its prompt was reused.")
    scale = Linear(high_s)
    drawing, said = [], []
    for place, run in enumerate(runs):
        points = [
            (scale.at(step.start_s), step.cached_tokens / step.prompt_tokens)
            for step in run.curves.reuse
        ]
        words = f"{clean(run.strategy)}: {percent(run.hit_ratio)} of the whole run"
        if points:
            words += f", {percent(points[0][1])} at first, {percent(points[-1][1])} at last"
            drawing.append(plots.line(points, Mark(place), words))
        said.append(words)
    return plots.figure(
        title,
        "Of the prompt tokens of requests that were due then, the share that engines reused.",
        plots.frame(drawing, f"{title}. {'. '.join(said)}.", axes.seconds(high_s), _QUARTERS),
        plots.legend(_entries(runs)),
    )


def _pods(runs: Runs, title: str, unit: str, value: Callable[[PodSummary], int | None]) -> Html:
    known = [
        sorted(
            ((value(pod) or 0, pod.pod) for pod in run.pods if value(pod) is not None), reverse=True
        )
        for run in runs
    ]
    most = max((pods[0][0] for pods in known if pods), default=0)
    if not most:
        return _nothing(title, "Not known of any pod.")
    scale = Linear(most * 1.05)
    entries = []
    for place, (run, pods) in enumerate(zip(runs, known, strict=True)):
        if pods:
            plot = _bars(pods, scale, Mark(place), title)
            entries.append((Mark(place).sample(), clean(run.strategy), plot))
    return plots.figure(
        title,
        f"{unit[0].upper()}{unit[1:]}, the busiest pod first. The dashed line is the mean.",
        plots.panels(entries),
        _pod_table(runs, title, known),
        wide=True,
    )


def _bars(pods: Sequence[tuple[int, str]], scale: Linear, mark: Mark, title: str) -> Html:
    width = 1 / len(pods)
    gap = width * 0.15
    bars = [
        ([(at * width + gap / 2, (at + 1) * width - gap / 2, 0.0, scale.at(number))], number, pod)
        for at, (number, pod) in enumerate(pods)
    ]
    mean = sum(number for number, _ in pods) / len(pods)
    if len(pods) <= _MOST_PODS_LISTED:
        drawing = [
            plots.area(bar, mark.colour, f"{clean(pod)}: {count(number)}")
            for bar, number, pod in bars
        ]
    else:
        whole = [corners for bar, _, _ in bars for corners in bar]
        drawing = [plots.area(whole, mark.colour, f"{len(pods)} pods")]
    said = (
        f"{title}: {len(pods)} pods, most {count(pods[0][0])} ({clean(pods[0][1])}), "
        f"least {count(pods[-1][0])} ({clean(pods[-1][1])}), mean {mean:,.0f}."
    )
    drawing.append(plots.level(scale.at(mean), f"mean {mean:,.0f}"))
    return plots.frame(drawing, said, [], axes.amounts(scale))


def _pod_table(runs: Runs, title: str, known: Sequence[Sequence[tuple[int, str]]]) -> Html:
    by_name = [{pod: number for number, pod in pods} for pods in known]
    names = sorted({pod for pods in by_name for pod in pods})
    more = len(names) - _MOST_PODS_LISTED
    summary = f"{title}, in numbers"
    if more > 0:
        summary += f" ({_MOST_PODS_LISTED} of {len(names)} pods; report.json has all)"
    return plots.details(
        summary,
        ["pod", *(clean(run.strategy) for run in runs)],
        [
            [clean(pod), *(count(pods.get(pod)) for pods in by_name)]
            for pod in names[:_MOST_PODS_LISTED]
        ],
    )


def _predicted(runs: Runs) -> Html:
    title = "Predicted against actual"
    entries = []
    for place, run in enumerate(runs):
        if run.curves.predicted_actual:
            entries.append((Mark(place).sample(), clean(run.strategy), _cells(run, Mark(place))))
    if not entries:
        return _nothing(
            title,
            "Not known by request: no answer tells what was predicted, or no strategy here looks "
            "at prompts. The table above has what the counters tell.",
        )
    return plots.figure(
        title,
        "Across: the share of a prompt that the processor expected to be reused. Up: the share "
        "that the engine reused. The larger a dot, the more requests. On the line, both are "
        "the same.",
        plots.panels(entries),
        wide=True,
    )


def _cells(run: RunSummary, mark: Mark) -> Html:
    cells = run.curves.predicted_actual
    most, total = max(number for _, _, number in cells), sum(number for _, _, number in cells)
    wide, high = plots.WIDTH / SQUARE, plots.HEIGHT / SQUARE
    same = tag("line", class_="level", x1=0, y1=plots.HEIGHT, x2=plots.WIDTH, y2=0)
    dots = [
        tag(
            "ellipse",
            tag("title", f"{count(number)} requests"),
            cx=f"{wide * (x + 0.5):.1f}",
            cy=f"{plots.HEIGHT - high * (y + 0.5):.1f}",
            rx=f"{max(1.5, 0.6 * wide * (number / most) ** 0.5):.2f}",
            ry=f"{max(0.75, 0.6 * high * (number / most) ** 0.5):.2f}",
            style=f"fill:{mark.colour}",
        )
        for x, y, number in cells
    ]
    near = sum(number for x, y, number in cells if abs(x - y) <= 1)
    said = (
        f"{clean(run.strategy)}: of {count(total)} requests {percent(near / total)} reused what "
        f"was predicted, to within {100 / SQUARE:.0f} points; predicted "
        f"{percent(run.predicted_hit_ratio)}, reused {percent(run.hit_ratio)}."
    )
    return plots.frame([same, *dots], said, _QUARTERS, _QUARTERS, square=True)


def _decisions(runs: Runs) -> Html:
    title = "Decisions by reason over time"
    known = [(place, run) for place, run in enumerate(runs) if run.curves.decided]
    rates = [
        sum(step.by_reason.values()) / (step.end_s - step.start_s)
        for _, run in known
        for step in run.curves.decided
        if step.end_s > step.start_s
    ]
    if not any(rates):
        return _nothing(title, "Not known: the processor's /metrics was not read.")
    scale = Linear(max(rates) * 1.05)
    end_s = max(run.curves.decided[-1].end_s for _, run in known)
    entries = [
        (Mark(place).sample(), clean(run.strategy), _stack(run, scale, end_s))
        for place, run in known
    ]
    seen = {_place(reason) for _, run in known for step in run.curves.decided
            for reason in step.by_reason}  # fmt: skip
    names = [*REASONS, "other"]
    return plots.figure(
        title,
        "Decisions in a second, stacked. The reasons are those of "
        "aibrix_prefix_cache_routing_selection_total.",
        plots.panels(entries),
        plots.legend([(plots.swatch(place), names[place]) for place in sorted(seen)]),
        wide=True,
    )


def _place(reason: str) -> int:
    return REASONS.index(reason) if reason in REASONS else len(REASONS)


def _stack(run: RunSummary, scale: Linear, end_s: float) -> Html:
    bars: dict[int, list[tuple[float, float, float, float]]] = {}
    totals: dict[int, int] = {}
    for step in run.curves.decided:
        took_s = step.end_s - step.start_s
        if took_s <= 0:
            continue
        left, right = (min(1.0, max(0.0, at / end_s)) for at in (step.start_s, step.end_s))
        below = 0.0
        for reason, number in sorted(step.by_reason.items(), key=lambda pair: _place(pair[0])):
            above = below + number / took_s
            place = _place(reason)
            bars.setdefault(place, []).append((left, right, scale.at(below), scale.at(above)))
            totals[place] = totals.get(place, 0) + number
            below = above
    names, whole = [*REASONS, "other"], sum(totals.values())
    words = {
        place: f"{names[place]} {percent(number / whole)}"
        for place, number in sorted(totals.items(), key=lambda pair: -pair[1])
    }
    drawing = [plots.area(bars[place], plots.fill(place), words[place]) for place in sorted(bars)]
    said = (
        f"{clean(run.strategy)}: {count(whole)} decisions: {', '.join(words.values()) or NOTHING}."
    )
    return plots.frame(drawing, said, axes.seconds(end_s), axes.amounts(scale))
