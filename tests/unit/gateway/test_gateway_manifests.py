"""The manifests of envoy/gateway: what an API server says of them, and that they fit the rest."""

from typing import Any

import pytest

from aibrix_extproc.settings import Settings
from tests.manifests import crds, deployed, kube_schemas, kustomize
from tests.manifests.crds import RELEASES
from tests.manifests.gateway_sets import BASE, GATEWAY, POOL, SETS, Set

Json = dict[str, Any]

POOL_RELEASES = ("inference-extension 1.0.0", "inference-extension 1.5.0")
STEERING = ["target-pod", "x-gateway-destination-endpoint", "x-data-parallel-rank"]


def faults(obj: Json, release: str) -> list[str]:
    if obj["apiVersion"] == "v1":
        return kube_schemas.faults(obj)
    return crds.faults(obj, release)


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
@pytest.mark.parametrize("release", RELEASES)
def test_schemas_and_rules_hold(one: Set, release: str) -> None:
    objects = [obj for obj in one.objects() if obj["kind"] != "InferencePool"]
    assert len(objects) >= 8
    assert [fault for obj in objects for fault in faults(obj, release)] == []


@pytest.mark.parametrize("release", POOL_RELEASES)
def test_schemas_and_rules_hold_for_the_pool(release: str) -> None:
    assert crds.faults(the(POOL, "InferencePool"), release) == []


def the(one: Set, kind: str, name: str | None = None) -> Json:
    (found,) = (
        obj
        for obj in one.objects()
        if obj["kind"] == kind and name in (None, obj["metadata"]["name"])
    )
    return found


def test_every_folder_belongs_to_a_set_that_is_checked() -> None:
    folders = {one.folder for one in SETS} | {name for one in SETS for name in one.components}
    shipped = {path.parent.relative_to(GATEWAY) for path in GATEWAY.rglob("kustomization.yaml")}
    assert {str(folder) for folder in shipped} == folders


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_every_set_strips_every_header_that_names_a_destination(one: Set) -> None:
    policy = the(one, "ClientTrafficPolicy")
    assert policy["spec"]["headers"]["earlyRequestHeaders"]["remove"] == STEERING
    (target,) = policy["spec"]["targetRefs"]
    assert target["name"] == the(one, "Gateway")["metadata"]["name"]


def test_the_processor_is_the_service_that_deploy_kubernetes_makes() -> None:
    (ext_proc,) = the(BASE, "EnvoyExtensionPolicy")["spec"]["extProc"]
    (reference,) = ext_proc["backendRefs"]
    service = deployed.find(deployed.processor(), "Service", reference["name"])
    assert service["metadata"]["namespace"] == reference["namespace"]
    assert reference["port"] in {port["port"] for port in service["spec"]["ports"]}
    grant = the(BASE, "ReferenceGrant")
    assert grant["metadata"]["namespace"] == reference["namespace"]
    assert [to["name"] for to in grant["spec"]["to"]] == [reference["name"]]
    policy = the(BASE, "EnvoyExtensionPolicy")["metadata"]["namespace"]
    assert [source["namespace"] for source in grant["spec"]["from"]] == [policy]


def test_the_processors_limit_is_a_mebibyte_below_envoys() -> None:
    connection = the(BASE, "ClientTrafficPolicy")["spec"]["connection"]
    assert connection["bufferLimit"] == "16Mi"
    settings = deployed.find(deployed.processor(), "ConfigMap")["data"]
    name = "AIBRIX_EXTPROC_MAX_BODY_BYTES"
    limit = Settings.from_environment({name: settings[name]}).max_body_bytes
    assert limit == (16 - 1) << 20


def test_the_engines_of_deploy_kubernetes_are_behind_the_service() -> None:
    spec = the(BASE, "Service", "engines")["spec"]
    for example in ("vllm", "fake-engines"):
        for obj in kustomize.render(deployed.DEPLOY / "examples" / example):
            if obj["kind"] != "Deployment":
                continue
            pod = obj["spec"]["template"]
            assert pod["metadata"]["labels"].items() >= spec["selector"].items()
            ports = {p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]}
            assert spec["ports"][0]["targetPort"] in ports
            assert pod["metadata"]["labels"]["model.aibrix.ai/port"] == "8000"


def test_a_pool_finds_its_picker_in_its_own_namespace_and_is_fail_closed() -> None:
    picker = the(POOL, "InferencePool")["spec"]["endpointPickerRef"]
    assert "namespace" not in picker
    assert picker["failureMode"] == "FailClose"
    left = {obj["kind"] for obj in POOL.objects()}
    assert left.isdisjoint({"EnvoyExtensionPolicy", "ReferenceGrant"})
