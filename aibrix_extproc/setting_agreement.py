"""The variables about comparing engines with what is believed of them.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from typing import Annotated

from pydantic import Field

from aibrix_extproc.setting_types import DurationOrZero, SettingsGroup, var


class AgreementSettings(SettingsGroup):
    """Samples, and questions to engines."""

    usage_sample: Annotated[float, Field(ge=0, le=1)] = var(
        0.01,
        "AIBRIX_EXTPROC_USAGE_SAMPLE",
        "Share of the answers whose `cached_tokens` are compared with what was predicted. Envoy "
        "must allow it (`allow_mode_override`); it hands over the bodies of these alone.",
    )
    engine_metrics_interval_s: DurationOrZero = var(
        30.0,
        "AIBRIX_EXTPROC_ENGINE_METRICS_INTERVAL",
        "How often each pod's own counters of reused tokens are read; 0 switches it off.",
    )
    tokenizer_check_interval_s: DurationOrZero = var(
        600.0,
        "AIBRIX_EXTPROC_TOKENIZER_CHECK_INTERVAL",
        "How often each pod tokenizes one fixed text, so that pods that differ are named; 0 "
        "switches it off. A new or restarted pod is asked at once.",
    )
