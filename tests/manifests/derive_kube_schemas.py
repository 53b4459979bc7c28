"""Derives tests/data/schemas/kubernetes.json again: `make kube-schemas`, where go is.

Owns what is kept: the kinds that deploy/ uses, all that they refer to, no descriptions, no status,
and no field that the API does not know (`additionalProperties: false`), as strict field validation
has it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

Json = dict[str, Any]

KUBERNETES: Final = "k8s.io/kubernetes@v1.37.2"
PROMETHEUS: Final = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
CRDS: Final = ("podmonitors", "prometheusrules")
KINDS: Final = (
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.rbac.v1.ClusterRole",
    "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
)
OUT: Final = Path(__file__).parents[1] / "data" / "schemas" / "kubernetes.json"

_REF: Final = "#/definitions/"
_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_LEFT_OUT: Final = ("status", "managedFields")
_KEPT: Final = {
    *("type", "format", "enum", "required", "items", "properties", "additionalProperties", "$ref"),
    *("pattern", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"),
    *("minProperties", "maxProperties", "allOf", "anyOf", "oneOf", "not"),
}


def module_folder(module: str) -> Path:
    """Where go keeps the unpacked module; it is fetched where it is not there."""
    result = subprocess.run(
        ["go", "mod", "download", "-json", module], capture_output=True, text=True, check=False
    )
    folder = json.loads(result.stdout or "{}").get("Dir")
    if not folder:
        sys.exit(f"{module} cannot be had: {result.stdout}{result.stderr}")
    return Path(folder)


def strict(schema: Any) -> Any:
    """One schema of OpenAPI as JSON schema knows it, closed to unknown fields."""
    if not isinstance(schema, dict):
        return schema
    text = schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string")
    if text:
        return {"type": ["integer", "string"]}
    kept = {name: value for name, value in schema.items() if name in _KEPT}
    kept.pop("format", None)
    if "properties" in kept:
        kept["properties"] = {n: strict(p) for n, p in kept["properties"].items()}
        if "additionalProperties" not in kept and not schema.get(
            "x-kubernetes-preserve-unknown-fields"
        ):
            kept["additionalProperties"] = False
    for name in ("items", "additionalProperties", "not"):
        if name in kept:
            kept[name] = strict(kept[name])
    for name in ("allOf", "anyOf", "oneOf"):
        if name in kept:
            kept[name] = [strict(one) for one in kept[name]]
    return kept


def without_status(schema: Json) -> Json:
    properties = {n: p for n, p in schema.get("properties", {}).items() if n not in _LEFT_OUT}
    return {**schema, "properties": properties} if properties else schema


def built_in(swagger: Json) -> tuple[dict[str, str], Json]:
    """The names of kinds, and every definition that they need."""
    definitions: Json = {}
    waiting = list(KINDS)
    while waiting:
        name = waiting.pop()
        if name in definitions:
            continue
        given = swagger["definitions"][name]
        whole = name in KINDS or name == _META
        made = strict(without_status(given) if whole else given)
        if name == _QUANTITY:
            made = {"type": ["string", "number"]}
        definitions[name] = made
        waiting += [ref.removeprefix(_REF) for ref in _references(made)]
    kinds = {}
    for name in KINDS:
        (gvk,) = swagger["definitions"][name]["x-kubernetes-group-version-kind"]
        version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
        kinds[f"{version} {gvk['kind']}"] = name
    return kinds, definitions


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [ref for one in schema for ref in _references(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [ref for value in schema.values() for ref in _references(value)]


def custom(crd: Json) -> tuple[str, Json]:
    """Name and schema of a CRD's newest served version."""
    version = next(v for v in reversed(crd["spec"]["versions"]) if v["served"])
    schema = strict(without_status(version["schema"]["openAPIV3Schema"]))
    schema["properties"]["metadata"] = {"$ref": _REF + _META}
    return f"{crd['spec']['group']}/{version['name']} {crd['spec']['names']['kind']}", schema


def main() -> None:
    """Write the file."""
    swagger = module_folder(KUBERNETES) / "api" / "openapi-spec" / "swagger.json"
    kinds, definitions = built_in(json.loads(swagger.read_text()))
    folder = module_folder(PROMETHEUS) / "example" / "prometheus-operator-crd"
    for plural in CRDS:
        crd = yaml.safe_load((folder / f"monitoring.coreos.com_{plural}.yaml").read_text())
        kind, definitions[plural] = custom(crd)
        kinds[kind] = plural
    compact = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode
    lines = [f"{json.dumps(name)}: {compact(definitions[name])}" for name in sorted(definitions)]
    head = json.dumps({"kinds": dict(sorted(kinds.items()))}, indent=1)[:-2]
    OUT.write_text(head + ',\n "definitions": {\n' + ",\n".join(lines) + "\n }\n}\n")


if __name__ == "__main__":
    main()
