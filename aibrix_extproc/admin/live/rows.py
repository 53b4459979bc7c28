"""What the page shows of each source, as plain values, and what of it changed since.

Pure: no socket, no clock. Owns the words for how a pod is. How they look is the page's business.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.routing.types import Load

Row = dict[str, Any]
Rows = Mapping[int, Row]
"""Source number → its row. A number is never used twice, so it names a row for good."""

_NO_LOAD: Final = Load()


class Health(StrEnum):
    """How a source is, in one word; the worst that holds, in this order."""

    UNREACHABLE = "unreachable"
    """Its API port refuses connections, or does not answer."""
    OUT = "taken out"
    """An operator did, with the lever pod-out."""
    NOT_READY = "not ready"
    """Discovery says so: it starts, ends, or fails its own check."""
    CUT = "events cut"
    """Its event port is not connected."""
    STALE = "stale"
    """Connected, and silent for longer than it is believed."""
    DOUBTED = "not believed"
    """Connected, and its events do not add up to a state that counts."""
    FULL = "index full"
    """Blocks of it are left out."""
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Hits:
    """Decisions for one source, or all, in some time."""

    picks: int = 0
    prompt_tokens: int = 0
    """Of those whose tokens were known."""
    reused_tokens: int = 0
    """Of these, what the chosen source is believed to hold."""

    @property
    def share(self) -> float | None:
        """0 to 1; None where no prompt's tokens were known."""
        return round(self.reused_tokens / self.prompt_tokens, 4) if self.prompt_tokens else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the process knows at one moment."""

    views: tuple[SourceView, ...]
    pods: Mapping[str, Pod]
    """By `namespace/name`."""
    out: frozenset[str]
    """Pods that an operator has taken out."""
    loads: Mapping[int, Load]
    open_requests: int
    """Requests that have been sent on and not ended."""
    notes: tuple[str, ...]
    """What whoever looks must know first: not ready, levers that were moved."""


NO_HITS: Final = Hits()


def rows_of(seen: Seen, hits: Mapping[int, Hits], answers: Mapping[str, bool]) -> dict[int, Row]:
    """A row for each source. `answers`: address → whether it took a connection; absent: unknown."""
    return {
        view.source: _row(view, seen, hits.get(view.source, NO_HITS), answers)
        for view in seen.views
    }


def difference(before: Rows, after: Rows) -> tuple[dict[str, Row], list[int]]:
    """The fields that changed, by source, and the sources that are gone."""
    changed: dict[str, Row] = {}
    for source, row in after.items():
        old = before.get(source)
        fields = row if old is None else {k: v for k, v in row.items() if old[k] != v}
        if fields:
            changed[str(source)] = fields
    return changed, [source for source in before if source not in after]


def named(rows: Rows) -> dict[str, Row]:
    """All rows, as JSON wants them."""
    return {str(source): row for source, row in rows.items()}


def counted(rows: Iterable[Row]) -> dict[str, int]:
    """How many sources there are of each health."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["health"]] = counts.get(row["health"], 0) + 1
    return counts


def _row(view: SourceView, seen: Seen, hits: Hits, answers: Mapping[str, bool]) -> Row:
    pod = seen.pods.get(view.pod)
    load = seen.loads.get(view.source, _NO_LOAD)
    return {
        "pod": view.pod,
        "rank": view.rank,
        "model": view.model,
        "address": pod.address if pod else None,
        "health": _health(view, pod, seen.out, answers),
        "state": view.state,
        "blocks": view.placements,
        "picks": hits.picks,
        "hit": hits.share,
        "requests": load.requests,
        "prefill": load.prefill_tokens,
        "lag_ms": None if view.lag_s is None else round(view.lag_s * 1000, 1),
    }


def _health(
    view: SourceView, pod: Pod | None, out: frozenset[str], answers: Mapping[str, bool]
) -> Health:
    troubles = (
        (Health.UNREACHABLE, pod is not None and answers.get(pod.address) is False),
        (Health.OUT, view.pod in out),
        (Health.NOT_READY, pod is None or not pod.ready),
        (Health.CUT, view.state is not None and not view.connected),
        (Health.STALE, view.stale),
        (Health.DOUBTED, view.state is not None and not view.usable),
        (Health.FULL, view.full),
    )
    return next((health for health, holds in troubles if holds), Health.OK)
