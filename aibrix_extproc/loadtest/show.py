"""The figures of a load test on a terminal: a column for each run."""

import math
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from aibrix_extproc.figures import Distribution
from aibrix_extproc.loadtest.report.results import RunResult


def table(runs: Sequence[RunResult]) -> Table:
    """What a run came to, a line per figure. Times are those of answered requests."""
    shown = Table(title="loadtest")
    shown.add_column(style="bold")
    for run in runs:
        shown.add_column(run.strategy, justify="right")
    columns = [_figures(run) for run in runs]
    for name in dict.fromkeys(name for column in columns for name in column):
        shown.add_row(name, *(column.get(name, "0") for column in columns))
    return shown


def _figures(run: RunResult) -> dict[str, str]:
    answered = [one for one in run.requests if one.error is None]
    reasons = Counter(one.error for one in run.requests if one.error is not None)
    prompt = sum(one.prompt_tokens for one in answered)
    cached = sum(one.cached_tokens or 0 for one in answered)
    late = Distribution.of([one.sent_s - one.intended_s for one in run.requests])
    ttft = Distribution.of(
        [one.first_token_s - one.intended_s for one in answered if one.first_token_s is not None]
    )
    whole = Distribution.of([one.ended_s - one.intended_s for one in answered])
    return {
        "requests": str(len(run.requests)),
        "errors": str(sum(reasons.values())),
        **{f"  {reason}": str(number) for reason, number in reasons.most_common()},
        "prompt tokens": str(prompt),
        "hit ratio (usage)": f"{100 * cached / prompt:.1f} %" if prompt else "-",
        "TTFT p50": _ms(ttft.p50),
        "TTFT p90": _ms(ttft.p90),
        "duration p50": _ms(whole.p50),
        "duration p90": _ms(whole.p90),
        "generator late p99": _ms(late.p99),
    }


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1000 * seconds:.0f} ms"
