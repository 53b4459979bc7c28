"""How much engines reuse by their own counters: vLLM's `/metrics` in, growth by pod out.

Pure. Owns the reading of the two counters (tokens looked up in the prefix cache, tokens found)
and the memory of what they stood at. A counter that went down is a new engine process.
"""

import re
from dataclasses import dataclass
from typing import Final

_LINE: Final = re.compile(
    rb"^vllm:(?:gpu_)?prefix_cache_(queries|hits)(?:_total)?(?:\{[^}\n]*\})? +([0-9.eE+]+)",
    re.MULTILINE,
)
"""`gpu_` before vLLM 0.9. Series of several ranks are added up."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of prompts, since the engine's start or within a time."""

    queries: int
    hits: int

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.queries + other.queries, self.hits + other.hits)

    @property
    def share(self) -> float | None:
        """Of the prompts, what was reused; None without any."""
        return self.hits / self.queries if self.queries else None


NOTHING: Final = Counted(0, 0)


def read_counters(exposition: bytes) -> Counted | None:
    """Both counters of an engine; None where it has none (another engine, caching off)."""
    sums = {b"queries": 0.0, b"hits": 0.0}
    seen = set()
    for name, value in _LINE.findall(exposition):
        try:
            sums[name] += float(value)
        except ValueError:
            return None
        seen.add(name)
    if len(seen) < len(sums):
        return None
    return Counted(int(sums[b"queries"]), int(sums[b"hits"]))


class Growth:
    """What counters grew by between two readings, by pod."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, str], Counted] = {}

    def read(self, identity: tuple[str, str, str], now: Counted) -> Counted:
        """The growth since the last reading of the same pod; nothing at the first one."""
        before = self._last.get(identity)
        self._last[identity] = now
        if before is None:
            return NOTHING
        if now.queries < before.queries or now.hits < before.hits:
            return now
        return Counted(now.queries - before.queries, now.hits - before.hits)

    def keep_only(self, identities: set[tuple[str, str, str]]) -> None:
        """Forget pods that are gone."""
        for gone in self._last.keys() - identities:
            del self._last[gone]
