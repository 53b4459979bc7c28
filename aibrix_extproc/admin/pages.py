"""What the admin port says, as plain values: no socket, no clock.

Owns the JSON shapes of the pages. Errors of a request are shaped by `extproc.replies`, as they
are towards Envoy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from aibrix_extproc.kvevents.manager import SourceView


def readiness_page(
    conditions: Mapping[str, bool], index_backend: str
) -> tuple[int, dict[str, Any]]:
    """The status and body of `/readyz`: 503 names each condition that does not hold yet."""
    missing = sorted(name for name, holds in conditions.items() if not holds)
    page = {
        "ready": not missing,
        "conditions": dict(conditions),
        "missing": missing,
        "index_backend": index_backend,
    }
    return (503 if missing else 200), page


def sources_page(views: Iterable[SourceView]) -> list[dict[str, Any]]:
    """`/debug/sources`: one object for each source, with the fields of `SourceView`."""
    return [asdict(view) for view in views]


def error_page(message: str, code: str, error_type: str) -> dict[str, Any]:
    """An error that is no `RequestError`, in the same shape as those are."""
    return {"error": {"message": message, "type": error_type, "code": code, "param": None}}
