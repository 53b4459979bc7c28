"""Whether an object fits the schema of its kind, as strict field validation of the API has it.

Owns the reading of tests/data/schemas/kubernetes.json. Knows no manifest and no CEL.
"""

import functools
import json
from typing import Any

import jsonschema

from tests.support import data_path

Json = dict[str, Any]


@functools.cache
def _schemas() -> Json:
    schemas: Json = json.loads(data_path("schemas/kubernetes.json").read_text())
    return schemas


@functools.cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schemas = _schemas()
    return jsonschema.Draft202012Validator(
        {
            "$ref": f"#/definitions/{schemas['kinds'][kind]}",
            "required": ["apiVersion", "kind", "metadata"],
            "definitions": schemas["definitions"],
        }
    )


def kind_of(obj: Json) -> str:
    """`apps/v1 Deployment`."""
    return f"{obj.get('apiVersion')} {obj.get('kind')}"


def faults(obj: Json) -> list[str]:
    """What is wrong with it, one line each; a kind without a schema here is a fault too."""
    kind = kind_of(obj)
    if kind not in _schemas()["kinds"]:
        return [f"{kind} has no schema in tests/data/schemas/kubernetes.json"]
    return [
        f"{kind} {obj.get('metadata', {}).get('name')}: {error.json_path}: {error.message}"
        for error in _validator(kind).iter_errors(obj)
    ]
