"""What a kustomization makes, without the tool: as much of it as deploy/kubernetes uses.

Resources, components, `namespace`, `images`, generated ConfigMaps (their name gets no hash here)
and patches by JSON patch or `$patch: delete`. A field that is not known is an error. Where the real
tool is at hand (`make kube-tools`) a test compares the two.
"""

import copy
from pathlib import Path
from typing import Any, Final

import yaml

Json = dict[str, Any]

FIELDS: Final = {
    *("apiVersion", "kind", "namespace", "resources", "components"),
    *("images", "configMapGenerator", "patches"),
}
_CLUSTER_WIDE: Final = ("ClusterRole", "ClusterRoleBinding", "Namespace")


def documents(path: Path) -> list[Json]:
    """The objects of one YAML file."""
    return [one for one in yaml.load_all(path.read_text(), yaml.CSafeLoader) if one]


def render(folder: Path) -> list[Json]:
    """The objects of the kustomization in `folder`."""
    return _build(folder, [])


def with_components(folder: Path, *components: Path) -> list[Json]:
    """The objects of `folder` as an overlay that adds `components` would have them."""
    objects = render(folder)
    for component in components:
        objects = _build(component, objects)
    return objects


def _build(folder: Path, given: list[Json]) -> list[Json]:
    spec = yaml.load((folder / "kustomization.yaml").read_text(), yaml.CSafeLoader)
    unknown = spec.keys() - FIELDS
    if unknown:
        raise ValueError(f"{folder}: this reader does not know {sorted(unknown)}")
    objects = copy.deepcopy(given)
    for name in spec.get("resources", []):
        path = folder / name
        objects += render(path) if path.is_dir() else documents(path)
    for name in spec.get("components") or []:
        objects = _build(folder / name, objects)
    for generator in spec.get("configMapGenerator", []):
        _generate(generator, folder, objects)
    for patch in spec.get("patches", []):
        objects = _patched(patch, objects)
    for obj in objects:
        if "namespace" in spec and obj["kind"] not in _CLUSTER_WIDE:
            obj["metadata"]["namespace"] = spec["namespace"]
        _set_images(obj, spec.get("images", []))
    return objects


def _generate(generator: Json, folder: Path, objects: list[Json]) -> None:
    data: dict[str, str] = {}
    for name in generator.get("envs", []):
        data |= _pairs((folder / name).read_text().splitlines())
    data |= _pairs(generator.get("literals", []))
    metadata = {"name": generator["name"], "namespace": generator["namespace"]}
    if generator.get("behavior") == "merge":
        (found,) = (
            one
            for one in objects
            if one["kind"] == "ConfigMap" and {n: one["metadata"][n] for n in metadata} == metadata
        )
        found["data"] |= data
        return
    labels = generator.get("options", {}).get("labels", {})
    objects.append(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**metadata, "labels": labels},
            "data": data,
        }
    )


def _pairs(lines: list[str]) -> dict[str, str]:
    written = [line for line in lines if line.strip() and not line.startswith("#")]
    return dict(line.split("=", 1) for line in written)


def _patched(patch: Json, objects: list[Json]) -> list[Json]:
    target, change = patch["target"], yaml.load(patch["patch"], yaml.CSafeLoader)
    hits = [o for o in objects if o["kind"] == target["kind"] and _name(o) == target["name"]]
    if isinstance(change, dict):
        if change.get("$patch") != "delete":
            raise ValueError(f"this reader knows no strategic merge: {change}")
        return [obj for obj in objects if obj not in hits]
    for obj in hits:
        for operation in change:
            apply_operation(obj, operation)
    return objects


def _name(obj: Json) -> str:
    return str(obj["metadata"]["name"])


def apply_operation(obj: Any, operation: Json) -> None:
    """One operation of a JSON patch (RFC 6902), in place. Raises LookupError or ValueError."""
    *way, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    for part in way:
        obj = obj[int(part)] if isinstance(obj, list) else obj[part]
    if operation["op"] == "add" and isinstance(obj, list):
        obj.insert(len(obj) if last == "-" else int(last), operation["value"])
        return
    key: Any = int(last) if isinstance(obj, list) else last
    if operation["op"] == "add":
        obj[key] = operation["value"]
    elif operation["op"] == "test" and obj[key] != operation["value"]:
        raise ValueError(f"{operation['path']} is {obj[key]!r}")
    elif operation["op"] == "replace":
        _ = obj[key]  # what is replaced must be there
        obj[key] = operation["value"]
    elif operation["op"] == "remove":
        del obj[key]


def _set_images(obj: Json, images: list[Json]) -> None:
    template = obj.get("spec", {}).get("template", {}) if isinstance(obj.get("spec"), dict) else {}
    for container in template.get("spec", {}).get("containers", []):
        name, _, tag = container["image"].partition(":")
        for image in images:
            if image["name"] == name:
                newer = image.get("newTag", tag)
                container["image"] = f"{image.get('newName', name)}:{newer}"
