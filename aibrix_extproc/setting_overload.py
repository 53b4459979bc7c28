"""The variables of overload: how long a request may wait, and how pods that join fill up.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from aibrix_extproc.setting_types import DurationOrZero, SettingsGroup, var


class OverloadSettings(SettingsGroup):
    """What happens where there is more to do than pods can, and while pods join."""

    max_start_delay_s: DurationOrZero = var(
        0.0,
        "AIBRIX_EXTPROC_MAX_START_DELAY",
        "Longest that a request may have to wait until a pod begins with it: above it another pod "
        "is chosen, and where none is in time the client gets 429 with `retry-after`. 0: no limit.",
    )
    ramp_s: DurationOrZero = var(
        30.0,
        "AIBRIX_EXTPROC_RAMP",
        "How long a pod that joins, or is ready again, takes to get its full share where requests "
        "go by load. 0: it gets all of them until it has as many as the others.",
    )
