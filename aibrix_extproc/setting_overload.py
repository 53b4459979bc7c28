"""The variables of overload: how long a request may wait for its beginning.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from aibrix_extproc.setting_types import DurationOrZero, SettingsGroup, var


class OverloadSettings(SettingsGroup):
    """What happens where there is more to do than pods can."""

    max_start_delay_s: DurationOrZero = var(
        0.0,
        "AIBRIX_EXTPROC_MAX_START_DELAY",
        "Longest that a request may have to wait until a pod begins with it: above it another pod "
        "is chosen, and where none is in time the client gets 429 with `retry-after`. 0: no limit.",
    )
