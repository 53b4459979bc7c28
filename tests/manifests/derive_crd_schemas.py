"""Derives tests/data/schemas/gateway.json again: `make gateway-schemas`, where go is.

Owns what is kept of the CustomResourceDefinitions that Go modules ship: the kinds of
envoy/gateway, of the oldest and of the newest release that is promised, with their defaults and
CEL rules; no descriptions, no status. Parts that are equal are kept once.
"""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

Json = dict[str, Any]

GATEWAY: Final = "github.com/envoyproxy/gateway"
INFERENCE: Final = "sigs.k8s.io/gateway-api-inference-extension"
SOURCES: Final = {
    # Gateway API's own kinds come with each release of Envoy Gateway, as it installs them.
    "envoy-gateway 1.6.0": (f"{GATEWAY}@v1.6.0", "charts/gateway-helm/crds"),
    "envoy-gateway 1.9.1": (f"{GATEWAY}@v1.9.1", "charts/gateway-helm/charts/crds/crds"),
    "inference-extension 1.0.0": (f"{INFERENCE}@v1.0.0", "config/crd/bases"),
    "inference-extension 1.5.0": (f"{INFERENCE}@v1.5.0", "config/crd/bases"),
}
"""Release: the module, and the folder of its CRDs."""

KINDS: Final = {
    "gateway.networking.k8s.io/v1 GatewayClass",
    "gateway.networking.k8s.io/v1 Gateway",
    "gateway.networking.k8s.io/v1 HTTPRoute",
    "gateway.networking.k8s.io/v1beta1 ReferenceGrant",
    "gateway.envoyproxy.io/v1alpha1 Backend",
    "gateway.envoyproxy.io/v1alpha1 BackendTrafficPolicy",
    "gateway.envoyproxy.io/v1alpha1 ClientTrafficPolicy",
    "gateway.envoyproxy.io/v1alpha1 EnvoyExtensionPolicy",
    "gateway.envoyproxy.io/v1alpha1 EnvoyPatchPolicy",
    "gateway.envoyproxy.io/v1alpha1 EnvoyProxy",
    "inference.networking.k8s.io/v1 InferencePool",
}
# All of EnvoyProxy is larger than all the rest: a whole pod stands in it four times. A manifest
# that uses another field is refused until it is named here.
ONLY: Final = {"EnvoyProxy": ("logging", "routingType", "telemetry", "shutdown", "mergeGateways")}
ONLY_TELEMETRY: Final = ("accessLog",)

OUT: Final = Path(__file__).parents[1] / "data" / "schemas" / "gateway.json"

_LEFT_OUT: Final = {"description", "externalDocs", "example", "title"}
_SHARED_CHARS: Final = 240
"""A part at least this long, as JSON, is kept once where it occurs more than once."""


def module_folder(module: str) -> Path:
    """Where go keeps the unpacked module; it is fetched where it is not there."""
    result = subprocess.run(
        ["go", "mod", "download", "-json", module], capture_output=True, text=True, check=False
    )
    folder = json.loads(result.stdout or "{}").get("Dir")
    if not folder:
        sys.exit(f"{module} cannot be had: {result.stdout}{result.stderr}")
    return Path(folder)


def definitions(folder: Path) -> Iterator[tuple[str, Json]]:
    """`group/version Kind` and schema of each version of each CRD below `folder`."""
    for path in sorted(folder.rglob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            if crd and crd["kind"] == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']} {spec['names']['kind']}"
                    yield name, version["schema"]["openAPIV3Schema"]


def strict(schema: Json, *, root: bool = False) -> Json:
    """A schema as strict field validation has it: what is not named is refused."""
    kept = {key: value for key, value in schema.items() if key not in _LEFT_OUT}
    properties = kept.get("properties")
    if properties is not None:
        if root:
            properties = {k: v for k, v in properties.items() if k != "status"}
        kept["properties"] = {name: strict(value) for name, value in properties.items()}
        if not kept.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = strict(kept[key])
    for key in ("anyOf", "oneOf", "allOf"):
        # These only constrain: the fields themselves are named beside them.
        if key in kept:
            kept[key] = [_without_words(one) for one in kept[key]]
    return kept


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: _without_words(v) for k, v in schema.items() if k not in _LEFT_OUT}
    return schema


def narrowed(kind: str, schema: Json) -> Json:
    """Without the fields that `ONLY` does not name."""
    short = kind.rpartition(" ")[2]
    if short in ONLY:
        spec = schema["properties"]["spec"]["properties"]
        schema["properties"]["spec"]["properties"] = {k: spec[k] for k in ONLY[short] if k in spec}
        telemetry = spec["telemetry"]["properties"]
        spec["telemetry"]["properties"] = {k: telemetry[k] for k in ONLY_TELEMETRY}
    return schema


def shared(schemas: dict[str, Json]) -> Json:
    """`kinds` (name → definition) and `definitions`, in which equal parts stand once."""
    seen: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            if _is_schema(part) and _size(part) >= _SHARED_CHARS:
                seen[_name(part)] += 1
            for value in part.values():
                count(value)

    found: Json = {}

    def replace(part: Any, top: bool = False) -> Any:
        if not isinstance(part, dict):
            return part
        if not top and _is_schema(part) and seen[_name(part)] > 1:
            name = _name(part)
            if name not in found:
                found[name] = replace(part, top=True)
            return {"$ref": f"#/definitions/{name}"}
        return {key: replace(value) for key, value in part.items()}

    for schema in schemas.values():
        count(schema)
    kinds = {name: replace(schema, top=True) for name, schema in sorted(schemas.items())}
    return {"kinds": kinds, "definitions": dict(sorted(found.items()))}


def _is_schema(part: Json) -> bool:
    """And not the fields of one, among which may be a field `type`."""
    return isinstance(part.get("type"), str)


def _size(part: Json) -> int:
    return len(json.dumps(part))


def _name(part: Json) -> str:
    text = json.dumps(part, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def derive() -> Json:
    schemas: dict[str, Json] = {}
    for release, (module, folder) in SOURCES.items():
        for kind, schema in definitions(module_folder(module) / folder):
            if kind in KINDS:
                schemas[f"{release}: {kind}"] = narrowed(kind, strict(schema, root=True))
    missing = KINDS - {name.partition(": ")[2] for name in schemas}
    if missing:
        sys.exit(f"no CRD of {sorted(missing)}")
    modules = {release: module for release, (module, _) in SOURCES.items()}
    return {"modules": modules, **shared(schemas)}


def main() -> None:
    text = json.dumps(derive(), indent=0, sort_keys=True, separators=(",", ":"))
    OUT.write_text(text + "\n")
    print(f"{OUT}: {len(text):,} characters")


if __name__ == "__main__":
    main()
