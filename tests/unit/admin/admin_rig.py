"""What the two ports ask of the rest of the process, settable by a test."""

from dataclasses import dataclass, field
from typing import Any

from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.index.results import IndexStats
from aibrix_extproc.kvevents.manager import SourceView

VIEW = SourceView(
    source=7,
    pod="default/vllm-0",
    rank=0,
    model="llama",
    state=None,
    usable=False,
    stale=False,
    connected=True,
    sequence=41,
    lag_s=0.25,
    placements=1000,
    full=False,
    pending_bytes=0,
    event_endpoint="tcp://10.0.0.1:5557",
)


def stats(**by_medium: int) -> IndexStats:
    return IndexStats(
        sources=2,
        blocks=900,
        placements=sum(by_medium.values()),
        orphans=3,
        bytes=123_456,
        by_medium=by_medium,
        full_sources=frozenset(),
        per_source={},
    )


@dataclass
class World:
    """What the server asks, settable by a test."""

    views_now: tuple[SourceView, ...] = (VIEW,)
    stats_now: IndexStats = field(default_factory=lambda: stats(GPU=1000))
    conditions: dict[str, bool] = field(default_factory=lambda: {"pods_listed": True})
    asked: list[RouteRequest] = field(default_factory=list)
    error: Exception | None = None

    def views(self) -> tuple[SourceView, ...]:
        return self.views_now

    def stats(self) -> IndexStats:
        return self.stats_now

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return {"outcome": "picked", "reason": "prefix"}
