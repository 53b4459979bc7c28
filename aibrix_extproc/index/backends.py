"""Which implementation of the index serves: the compiled core, or the reference.

Owns the choice. Both answer alike (`reference` is the specification); the core is some hundred
times faster, and lets requests in while events are applied.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from aibrix_extproc.index import reference

if TYPE_CHECKING:
    from aibrix_extproc.index.reference import PrefixIndex
else:
    try:
        from aibrix_extproc._core import PrefixIndex
    except ImportError:
        from aibrix_extproc.index.reference import PrefixIndex

__all__ = ["BACKEND", "Backend", "BackendMissing", "PrefixIndex", "open_index"]


class Backend(StrEnum):
    """The implementations, by the names that metrics and settings have for them."""

    CORE = "core"
    REFERENCE = "reference"


BACKEND: Final = Backend.REFERENCE if PrefixIndex is reference.PrefixIndex else Backend.CORE
"""What `PrefixIndex` is here."""


class BackendMissing(RuntimeError):
    """The core was asked for and is not built."""


def open_index(
    wanted: Backend | None, max_bytes: int, max_orphans: int
) -> tuple[Backend, "PrefixIndex"]:
    """An empty index, and what it is. None wants the core where it is built.

    Raises BackendMissing where the core is wanted and was not built.
    """
    if wanted is Backend.CORE and BACKEND is not Backend.CORE:
        raise BackendMissing("the compiled core is not built")
    if wanted is Backend.REFERENCE:
        return Backend.REFERENCE, reference.PrefixIndex(max_bytes, max_orphans)
    return BACKEND, PrefixIndex(max_bytes, max_orphans)
