"""What an API server with Envoy Gateway's, Gateway API's and the Inference Extension's CRDs would
say of a manifest: unknown fields, schemas, keys of lists, and CEL rules, after defaults are set.

    assert crds.faults(manifest, "envoy-gateway 1.9.1") == []

Owns the reading of tests/data/schemas/gateway.json (`derive_crd_schemas.py` makes it). Knows no
manifest. The rules run in Google's own CEL runtime; those that compare with the object before a
change (`oldSelf`) have no meaning for a new one, and are not run.
"""

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any, Final

import jsonschema
from cel_expr_python import cel
from cel_expr_python.ext import ext_strings

from tests.support import data_path

Json = dict[str, Any]

OLDEST: Final = "envoy-gateway 1.6.0"
NEWEST: Final = "envoy-gateway 1.9.1"
RELEASES: Final = (OLDEST, NEWEST)

# Names that Kubernetes writes otherwise in rules, as CEL reserves them.
_RESERVED: Final = {
    *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function"),
    *("if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
}
_ENVIRONMENT: Final = cel.NewEnv(
    variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN},
    extensions=[ext_strings.ExtStrings()],
)


@functools.cache
def _file() -> Json:
    schemas: Json = json.loads(data_path("schemas/gateway.json").read_text())
    return schemas


def kinds(release: str) -> set[str]:
    """The kinds (`group/version Kind`) that have a schema of that release."""
    mine = f"{release}: "
    return {name.removeprefix(mine) for name in _file()["kinds"] if name.startswith(mine)}


def kind_of(obj: Json) -> str:
    """`gateway.networking.k8s.io/v1 Gateway`."""
    return f"{obj.get('apiVersion')} {obj.get('kind')}"


def schema(kind: str, release: str) -> Json:
    """Of one kind, with `$ref`s into the file's definitions. KeyError: it has none."""
    found: Json = _file()["kinds"][f"{release}: {kind}"]
    return found


def resolved(part: Json) -> Json:
    """The part of a schema that a `$ref` stands for."""
    while "$ref" in part:
        part = _file()["definitions"][part["$ref"].rpartition("/")[2]]
    return part


def faults(obj: Json, release: str = NEWEST) -> list[str]:
    """What is wrong with it, one line each; a kind without a schema of that release is one too."""
    kind = kind_of(obj)
    if kind not in kinds(release):
        return [f"{kind} has no schema of {release} in tests/data/schemas/gateway.json"]
    filled = with_defaults(obj, release)
    title = f"{kind} {obj.get('metadata', {}).get('name')}"
    problems = [
        f"{e.json_path}: {e.message}" for e in _validator(kind, release).iter_errors(filled)
    ]
    # As in the API server: rules may count on what the schema has settled.
    if not problems:
        problems = [
            *_name_faults(obj),
            *_walked(filled, schema(kind, release), "$"),
        ]
    return [f"{title}: {problem}" for problem in problems]


def with_defaults(obj: Json, release: str = NEWEST) -> Json:
    """The object as the API server would store it."""
    filled = copy.deepcopy(obj)
    _fill(filled, schema(kind_of(obj), release))
    return filled


def rules(release: str) -> dict[str, set[str]]:
    """Every CEL rule of a release, and the kinds that it stands in."""
    found: dict[str, set[str]] = {}

    def walk(part: Json, kind: str) -> None:
        part = resolved(part)
        for rule in part.get("x-kubernetes-validations", ()):
            found.setdefault(rule["rule"], set()).add(kind)
        for child in _children(part):
            walk(child, kind)

    for kind in kinds(release):
        walk(schema(kind, release), kind)
    return found


def is_transition(rule: str) -> bool:
    """Whether a rule speaks of changes, and so says nothing of a new object."""
    return "oldSelf" in rule


@functools.cache
def compiled(rule: str) -> cel.Expression:
    """Raises what the CEL runtime raises where it cannot read the rule."""
    return _ENVIRONMENT.compile(rule)


@functools.cache
def _validator(kind: str, release: str) -> jsonschema.Draft202012Validator:
    whole = {**schema(kind, release), "definitions": _file()["definitions"]}
    required = {"apiVersion", "kind", "metadata", *whole.get("required", ())}
    return jsonschema.Draft202012Validator(whole | {"required": sorted(required)})


def _name_faults(obj: Json) -> Iterator[str]:
    known = {"name", "namespace", "labels", "annotations"}
    if unknown := obj["metadata"].keys() - known:
        yield f"$.metadata: {sorted(unknown)} are not for manifests"
    if not obj["metadata"].get("name"):
        yield "$.metadata: no name"


def _children(part: Json) -> Iterator[Json]:
    yield from part.get("properties", {}).values()
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield part[key]


def _fill(value: Any, part: Json) -> None:
    part = resolved(part)
    if isinstance(value, dict):
        for name, child in part.get("properties", {}).items():
            default = resolved(child).get("default")
            if default is not None and value.get(name) is None:
                value[name] = copy.deepcopy(default)
    for _, inner, child in _parts(value, part):
        _fill(inner, child)


def _parts(value: Any, part: Json) -> Iterator[tuple[str, Any, Json]]:
    """The values inside of one, each with its step and its schema."""
    if isinstance(value, dict):
        for name, inner in value.items():
            child = part.get("properties", {}).get(name, part.get("additionalProperties"))
            if isinstance(child, dict):
                yield f".{name}", inner, child
    elif isinstance(value, list) and isinstance(part.get("items"), dict):
        for number, inner in enumerate(value):
            yield f"[{number}]", inner, part["items"]


def _walked(value: Any, part: Json, path: str) -> Iterator[str]:
    """What the keys of lists and the rules say, from here down."""
    part = resolved(part)
    if value is None:
        return
    yield from _list_faults(value, part, path)
    for rule in part.get("x-kubernetes-validations", ()):
        if not is_transition(rule["rule"]):
            yield from _rule_faults(value, part, rule, path)
    for step, inner, child in _parts(value, part):
        yield from _walked(inner, child, path + step)


def _list_faults(value: Any, part: Json, path: str) -> Iterator[str]:
    how = part.get("x-kubernetes-list-type")
    if how not in ("map", "set") or not isinstance(value, list):
        return
    names = part.get("x-kubernetes-list-map-keys", ())
    keys = [json.dumps([one.get(n) for n in names] if how == "map" else one) for one in value]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"{path}: {key} stands there twice"


def _rule_faults(value: Any, part: Json, rule: Json, path: str) -> Iterator[str]:
    found = compiled(rule["rule"]).eval(data={"self": _escaped(value, part)})
    if found.value() is not True:
        # A rule that cannot be evaluated refuses, as in the API server.
        why = "" if found.value() is False else f" ({found.value()})"
        yield f"{path}: {rule.get('message', 'a rule says no')} [{rule['rule']}]{why}"


def _escaped(value: Any, part: Json) -> Any:
    """A value with the names of fields as rules write them; keys of maps stay as they are."""
    part = resolved(part)
    if isinstance(value, list):
        return [_escaped(inner, part.get("items") or {}) for inner in value]
    if not isinstance(value, dict):
        return value
    fields = part.get("properties")
    if fields is None:
        others = part.get("additionalProperties")
        return {
            k: _escaped(v, others if isinstance(others, dict) else {}) for k, v in value.items()
        }
    return {_in_rules(k): _escaped(v, fields.get(k, {})) for k, v in value.items()}


def _in_rules(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    for sign, written in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__")):
        name = name.replace(sign, written)
    return name.replace("/", "__slash__")
