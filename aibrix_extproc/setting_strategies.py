"""The variables of strategies that have some of their own.

Owns their names, defaults and meanings; a part of `settings`, which reads them. The rules stand
in `routing/strategies/`, and docs/strategies.md says why the defaults are what they are.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from aibrix_extproc.setting_types import Duration, DurationOrZero, SettingsGroup, var


def _off_or_at_least_one(factor: float) -> float:
    """Below 1 times the mean there would be moments without any candidate that has room."""
    if 0 < factor < 1:
        raise ValueError("write 0 (no bound) or a number of at least 1")
    return factor


class StrategySettings(SettingsGroup):
    """`session-affinity` and `least-kv-cache`."""

    session_load_factor: Annotated[float, Field(ge=0), AfterValidator(_off_or_at_least_one)] = var(
        2.0,
        "AIBRIX_EXTPROC_SESSION_LOAD_FACTOR",
        "`session-affinity`: a pod with more than this many times the mean of open requests is "
        "full, and its sessions go to their next pod meanwhile. 0: never.",
    )
    session_load_floor: Annotated[int, Field(ge=1)] = var(
        8,
        "AIBRIX_EXTPROC_SESSION_LOAD_FLOOR",
        "`session-affinity`: open requests up to which no pod is full, whatever the mean.",
    )
    kv_usage_interval_s: DurationOrZero = var(
        1.0,
        "AIBRIX_EXTPROC_KV_USAGE_INTERVAL",
        "`least-kv-cache`: how often each pod is asked how full its KV cache is, while requests go "
        "by that; 0 switches it off, and load decides.",
    )
    kv_usage_max_age_s: Duration = var(
        5.0,
        "AIBRIX_EXTPROC_KV_USAGE_MAX_AGE",
        "`least-kv-cache`: an older answer is not used. Keep it some times the interval.",
    )
