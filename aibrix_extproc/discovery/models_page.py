"""`/v1/models` in OpenAI's shape, as Envoy's clients and the admin port see it."""

from collections.abc import Iterable
from typing import Any


def models_page(names: Iterable[str]) -> dict[str, Any]:
    """The names that a client may send. When a model was made is not known, hence 0."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "aibrix"} for name in names]
    return {"object": "list", "data": data}
