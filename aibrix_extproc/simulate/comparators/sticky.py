"""`sticky`: stay with the longest prefix until the pod has too many tokens before it (llm-d)."""

from random import Random
from typing import Final

from aibrix_extproc.routing.types import Decision, Load, RouteContext
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.comparators.ordering import decision, ranked

_BACKLOG_LIMIT_TOKENS: Final = 16_384
"""Two steps of vLLM's default budget of 8,192 tokens."""


class Sticky:
    """The longest prefix among pods whose backlog of prompt tokens is small enough; where none of
    them holds any, the smallest backlog. Ties to the fewest requests, then at random."""

    name: str = "sticky"
    needs_tokens: bool = True

    def __init__(self, settings: Settings, rng: Random) -> None:
        self._rng = rng

    def rank(self, context: RouteContext) -> Decision:
        """Those that may keep the prompt first, then by backlog."""
        return decision(self.name, context, ranked(context, _key, self._rng))


def _key(held: int, load: Load) -> tuple[int, int, int]:
    if held and load.prefill_tokens <= _BACKLOG_LIMIT_TOKENS:
        return (0, -held, load.requests)
    return (1, load.prefill_tokens, load.requests)
