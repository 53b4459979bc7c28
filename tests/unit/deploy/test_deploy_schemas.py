"""Every shipped object fits the schema of its kind, and the checkers can say no."""

import copy
import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.manifests import deployed, kube_schemas, kustomize
from tests.support import data_path

Json = dict[str, Any]

SETS = [(), *((name,) for name in deployed.COMPONENTS), ("autoscaling", "curve", "tls")]


def ids(names: tuple[str, ...]) -> str:
    return "+".join(names) or "default"


def test_every_object_fits_its_schema() -> None:
    assert [fault for obj in deployed.everything() for fault in kube_schemas.faults(obj)] == []


@pytest.mark.parametrize("names", SETS, ids=ids)
def test_every_set_of_components_fits_the_schemas(names: tuple[str, ...]) -> None:
    objects = deployed.processor(*names)
    assert [fault for obj in objects for fault in kube_schemas.faults(obj)] == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Deployment", {"op": "add", "path": "/spec/template/spec/gracePeriod", "value": 5}),
        ("Deployment", {"op": "replace", "path": "/spec/replicas", "value": "two"}),
        ("Service", {"op": "remove", "path": "/spec/ports/0/port"}),
        ("NetworkPolicy", {"op": "add", "path": "/spec/ingres", "value": []}),
        ("PodMonitor", {"op": "add", "path": "/spec/podMetricsEndpoints/0/prot", "value": "x"}),
        ("Role", {"op": "add", "path": "/rules/0/verb", "value": ["get"]}),
    ],
)
def test_a_field_that_does_not_exist_or_is_of_another_type_is_refused(
    kind: str, change: Json
) -> None:
    obj = copy.deepcopy(deployed.find(deployed.processor("monitoring"), kind))
    assert kube_schemas.faults(obj) == []
    kustomize.apply_operation(obj, change)
    assert kube_schemas.faults(obj)


def test_a_kind_without_a_schema_is_refused() -> None:
    assert kube_schemas.faults({"apiVersion": "v1", "kind": "Deployment", "metadata": {}})


def test_the_schemas_are_small() -> None:
    assert data_path("schemas/kubernetes.json").stat().st_size < 100_000
    schemas = json.loads(data_path("schemas/kubernetes.json").read_text())
    assert set(schemas["kinds"].values()) <= schemas["definitions"].keys()


def test_the_reader_of_kustomizations_refuses_what_it_does_not_know(tmp_path: Any) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        kustomize.render(tmp_path)


@pytest.mark.parametrize("names", SETS, ids=ids)
def test_the_reader_makes_what_kustomize_makes(names: tuple[str, ...], tmp_path: Any) -> None:
    program = deployed.tool("kustomize")
    if program is None:
        pytest.skip("no kustomize: make kube-tools builds it where go is")
    overlay = deployed.DEPLOY / "default"
    if names:  # kustomize takes relative paths alone
        up = "../" * len(tmp_path.parts) + str(deployed.DEPLOY).lstrip("/")
        (tmp_path / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "resources": [f"{up}/default"],
                    "components": [f"{up}/components/{name}" for name in names],
                }
            )
        )
        overlay = tmp_path
    result = subprocess.run(
        [program, "build", str(overlay)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    made = [without_hash(obj) for obj in yaml.load_all(result.stdout, yaml.CSafeLoader)]
    assert by_name(made) == by_name(deployed.processor(*names))


def without_hash(obj: Json) -> Json:
    """The generated ConfigMap's name as the reader has it, wherever it is named."""
    text = json.dumps(obj)
    config = next(iter(set(_generated(obj))), None)
    return json.loads(text.replace(config, deployed.NAME)) if config else obj  # type: ignore[no-any-return]


def _generated(obj: Json) -> list[str]:
    if obj["kind"] == "ConfigMap":
        return [obj["metadata"]["name"]]
    if obj["kind"] != "Deployment":
        return []
    return [
        source["configMapRef"]["name"]
        for one in obj["spec"]["template"]["spec"]["containers"]
        for source in one["envFrom"]
    ]


def by_name(objects: list[Json]) -> dict[tuple[str, str, str], Json]:
    keyed = {
        (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): o for o in objects
    }
    assert len(keyed) == len(objects)
    return keyed
