"""The variables of the warm restart.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from aibrix_extproc.setting_types import Duration, DurationOrZero, SettingsGroup, var


class SnapshotSettings(SettingsGroup):
    """Where the index is saved, and how often."""

    kv_snapshot_path: str = var(
        "",
        "AIBRIX_KV_SNAPSHOT_PATH",
        "File that the index is saved to, and taken over from at start; of one process alone. "
        "Unset: nothing is saved.",
    )
    kv_snapshot_interval_s: DurationOrZero = var(
        60.0,
        "AIBRIX_KV_SNAPSHOT_INTERVAL",
        "How often it is saved, beside at the end of the process; 0: only then.",
    )
    kv_snapshot_max_age_s: Duration = var(
        3600.0,
        "AIBRIX_KV_SNAPSHOT_MAX_AGE",
        "An older file is not used: the engines' replay buffers no longer reach back so far.",
    )
