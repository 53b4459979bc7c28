"""What several strategies share: the empty load, and the reason of a choice that was none."""

from typing import Final

from aibrix_extproc.routing.types import Load, RouteContext

NO_LOAD: Final = Load()


def reason_or_only(context: RouteContext, reason: str) -> str:
    """`only` where there was a single candidate, else `reason`."""
    return "only" if len(context.candidates) == 1 else reason
