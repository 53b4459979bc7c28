"""The variables that bound what others can make this process hold.

Owns their names, defaults and meanings; a part of `settings`, which reads them. docs/limits.md has
all limits in one table, constants among them, with what happens at each.
"""

from typing import Annotated

from pydantic import Field

from aibrix_extproc.setting_types import DurationOrZero, SettingsGroup, var


class BoundSettings(SettingsGroup):
    """Limits on pods, names, labels, prompts and reservations."""

    max_sources: Annotated[int, Field(ge=1)] = var(
        10_000,
        "AIBRIX_EXTPROC_MAX_SOURCES",
        "Pods known at once, each data-parallel rank counted; above it further pods are left out.",
    )
    max_models: Annotated[int, Field(ge=1)] = var(
        10_000,
        "AIBRIX_EXTPROC_MAX_MODELS",
        "Names that clients may send, adapters among them; above it further names are unknown.",
    )
    max_model_labels: Annotated[int, Field(ge=0)] = var(
        500,
        "AIBRIX_EXTPROC_MAX_MODEL_LABELS",
        "Values of the metric label `model`; above it further models count as `other`.",
    )
    max_prompt_tokens: Annotated[int, Field(ge=1)] = var(
        262_144,
        "AIBRIX_EXTPROC_MAX_PROMPT_TOKENS",
        "Leading tokens of a prompt that are matched and predicted; those after count as length.",
    )
    max_reservations: Annotated[int, Field(ge=1)] = var(
        100_000,
        "AIBRIX_EXTPROC_MAX_RESERVATIONS",
        "Requests in the ledger of load at once; above it those due to leave first go early.",
    )
    empty_listing_grace_s: DurationOrZero = var(
        30.0,
        "AIBRIX_EXTPROC_EMPTY_LISTING_GRACE",
        "How long Kubernetes must go on listing no pod at all until the known ones are given up.",
    )
