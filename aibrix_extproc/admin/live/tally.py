"""Decisions added up by the second: rates, hit ratio and latency of late, in all and by source.

Pure: times are given, in Unix seconds. Knows records of decisions and nothing of who looks.
"""

from collections.abc import Iterable
from typing import Any, Final

from aibrix_extproc.admin.live.rows import Hits
from aibrix_extproc.decisions import DecisionRecord

HISTORY_S: Final = 120
"""What the charts show."""
HITS_S: Final = 60
"""What a hit ratio is of."""
RECENT_S: Final = 10
"""What a rate and a latency are of."""
_AHEAD_S: Final = 5
"""A second further ahead than this is from before the clock was set back."""


class _Second:
    """What was decided within one second."""

    def __init__(self) -> None:
        self.took_s: list[float] = []
        self.by_source: dict[int, list[int]] = {}
        """Source → picks, prompt tokens, reused tokens."""

    def add(self, record: DecisionRecord) -> None:
        self.took_s.append(record.took_s)
        chosen = record.decision.chosen
        sums = self.by_source.setdefault(chosen.candidate.source, [0, 0, 0])
        sums[0] += 1
        if record.tokens_known:
            sums[1] += record.prompt_tokens
            sums[2] += chosen.reusable_tokens


class Tally:
    """The last `HISTORY_S` seconds."""

    def __init__(self) -> None:
        self._seconds: dict[int, _Second] = {}

    def add(self, records: Iterable[DecisionRecord], now: float) -> list[int]:
        """Count decisions; the seconds that they fell into, rising. What is too old is let go."""
        touched = set()
        for record in records:
            at_s = int(record.at_s)
            if now - HISTORY_S < at_s <= now + _AHEAD_S:
                touched.add(at_s)
                self._seconds.setdefault(at_s, _Second()).add(record)
        for at_s in [s for s in self._seconds if not now - HISTORY_S < s <= now + _AHEAD_S]:
            del self._seconds[at_s]
        return sorted(touched)

    def points(self, seconds: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Of these seconds, or all, in order: what the charts draw. Empty ones have no point."""
        wanted = sorted(self._seconds) if seconds is None else seconds
        return [_point(at_s, self._seconds[at_s]) for at_s in wanted if at_s in self._seconds]

    def hits(self, now: float) -> dict[int, Hits]:
        """By source, of the last `HITS_S`."""
        sums: dict[int, list[int]] = {}
        for second in self._since(now, HITS_S):
            for source, more in second.by_source.items():
                known = sums.setdefault(source, [0, 0, 0])
                for place, amount in enumerate(more):
                    known[place] += amount
        return {source: Hits(*amounts) for source, amounts in sums.items()}

    def totals(self, now: float, hits: Iterable[Hits]) -> dict[str, Any]:
        """Decisions a second and their latency of the last `RECENT_S`, the hit ratio of `hits`."""
        took_s = [one for second in self._since(now, RECENT_S) for one in second.took_s]
        known = list(hits)
        everything = Hits(
            sum(one.picks for one in known),
            sum(one.prompt_tokens for one in known),
            sum(one.reused_tokens for one in known),
        )
        return {
            "per_s": round(len(took_s) / RECENT_S, 1),
            "picks": everything.picks,
            "hit": everything.share,
            **_latencies(took_s),
        }

    def _since(self, now: float, span_s: float) -> Iterable[_Second]:
        return [second for at_s, second in self._seconds.items() if at_s > now - span_s]


def _point(at_s: int, second: _Second) -> dict[str, Any]:
    sums = [sum(column) for column in zip(*second.by_source.values(), strict=True)]
    return {"t": at_s, "n": sums[0], "hit": Hits(*sums).share, **_latencies(second.took_s)}


def _latencies(took_s: list[float]) -> dict[str, float | None]:
    """Median and 99th percentile (nearest rank), in ms."""
    if not took_s:
        return {"p50_ms": None, "p99_ms": None}
    ordered = sorted(took_s)
    last = len(ordered) - 1
    return {
        "p50_ms": round(ordered[last // 2] * 1000, 3),
        "p99_ms": round(ordered[-(-last * 99 // 100)] * 1000, 3),
    }
