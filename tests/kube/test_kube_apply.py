"""A real API server takes every manifest: server-side apply, strict fields, its own CEL."""

import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cluster import Api
from tests.kube.conftest import NEWEST, OLDEST, Site, fresh, install_crds
from tests.manifests import deployed, kustomize

Json = dict[str, Any]

pytestmark = pytest.mark.kube

CANONICAL = {"2000": "2k"}
"""Quantities that the API server writes otherwise."""
SHIPPED = [obj for obj in deployed.everything() if not obj["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("name", [deployed.title(obj) for obj in SHIPPED])
def test_an_object_of_deploy_is_applied(site: Site, name: str) -> None:
    reply = site.applied[name]
    assert reply.status_code in {200, 201}, reply.text


def test_what_was_applied_is_there_as_it_was_written(site: Site) -> None:
    for obj in SHIPPED:
        held = site.api.get(site.api.path_of(obj))
        assert contained(obj, held), deployed.title(obj)


def contained(wanted: Any, held: Any) -> bool:
    """Whether all of `wanted` stands in `held`, which leaves out what is false by default."""
    if isinstance(wanted, dict):
        return isinstance(held, dict) and all(
            contained(v, held[n]) if n in held else v is False for n, v in wanted.items()
        )
    if isinstance(wanted, list):
        return len(wanted) == len(held) and all(map(contained, wanted, held))
    return CANONICAL.get(str(wanted), wanted) == held


def test_applying_all_again_changes_nothing(site: Site) -> None:
    for obj in SHIPPED:
        path = site.api.path_of(obj)
        before = without_bookkeeping(site.api.get(path))
        assert site.api.apply(obj).status_code == 200
        assert without_bookkeeping(site.api.get(path)) == before, deployed.title(obj)


def without_bookkeeping(obj: Json) -> Json:
    left_out = {"managedFields", "resourceVersion"}
    return obj | {"metadata": {n: v for n, v in obj["metadata"].items() if n not in left_out}}


@pytest.mark.parametrize("component", [*deployed.COMPONENTS, "all"])
def test_every_component_is_taken(site: Site, component: str) -> None:
    names = deployed.COMPONENTS if component == "all" else (component,)
    assert refused(site.api, deployed.processor(*names)) == []


HELM_SETS = [
    [],
    ["tls.enabled=true", "curve.enabled=true", "autoscaling.enabled=true"],
    ["podMonitor.enabled=true", "doctor.enabled=true", "replicaCount=1"],
    ["engines.namespace=", "doctor.enabled=true"],
    ["networkPolicy.envoyNamespaces={edge,gateways}", "engines.ranks=1"],
    ["warmStart.fromPeer=false", "warmStart.snapshot=false", "networkPolicy.enabled=false"],
]


@pytest.mark.parametrize("sets", HELM_SETS, ids=" ".join)
def test_what_the_chart_makes_is_taken(site: Site, sets: list[str]) -> None:
    helm = deployed.tool("helm")
    if helm is None:
        pytest.skip("no helm: make kube-tools builds it where go is")
    command = [helm, "template", "edge", str(deployed.CHART), "--namespace", deployed.NAMESPACE]
    command += ["--kube-version", "1.37.0", *(word for one in sets for word in ("--set", one))]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert refused(site.api, [one for one in yaml.load_all(made, yaml.CSafeLoader) if one]) == []


def refused(api: Api, objects: list[Json]) -> list[str]:
    """What the API server says against them; nothing is kept."""
    replies = [(obj, api.apply(obj, dryRun="All")) for obj in objects]
    return [f"{deployed.title(o)}: {r.text}" for o, r in replies if not r.is_success]


def test_the_alert_rules_are_taken_as_a_prometheus_rule(site: Site) -> None:
    text = (deployed.ROOT / "deploy" / "monitoring" / "rules.yaml").read_text()
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "aibrix-extproc", "namespace": deployed.NAMESPACE},
        "spec": yaml.safe_load(text),
    }
    assert refused(site.api, [rule]) == []


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("Deployment", {"op": "add", "path": "/spec/replica", "value": 2}, "replica"),
        (
            "Deployment",
            {
                "op": "replace",
                "path": "/spec/template/spec/containers/0/ports/0/name",
                "value": "G!",
            },
            "ports[0].name",
        ),
        (
            "NetworkPolicy",
            {"op": "replace", "path": "/spec/egress/2/ports/1/endPort", "value": 5000},
            "endPort",
        ),
        (
            "PodDisruptionBudget",
            {"op": "add", "path": "/spec/minAvailable", "value": 1},
            "minAvail",
        ),
        (
            "PodMonitor",
            {"op": "replace", "path": "/spec/podMetricsEndpoints/0/interval", "value": "soon"},
            "interval",
        ),
    ],
)
def test_what_is_wrong_is_refused(site: Site, kind: str, change: Json, words: str) -> None:
    obj = copy.deepcopy(deployed.find(deployed.processor("monitoring"), kind))
    kustomize.apply_operation(obj, change)
    reply = site.api.apply(obj, dryRun="All")
    assert not reply.is_success
    assert words in reply.text


def pod_of(deployment: str) -> Json:
    """The pod that a controller would make of it."""
    template = deployed.find(deployed.everything(), "Deployment", deployment)["spec"]["template"]
    metadata = {**template["metadata"], "name": "made-by-a-test"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def test_the_processors_pod_is_let_into_a_restricted_namespace(site: Site) -> None:
    path = f"/api/v1/namespaces/{deployed.NAMESPACE}/pods"
    pod = pod_of(deployed.NAME)
    assert site.api.ask("POST", path, pod, dryRun="All").is_success
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    reply = site.api.ask("POST", path, pod, dryRun="All")
    assert reply.status_code == 403
    assert "restricted" in reply.text


@pytest.mark.parametrize("deployment", ["llama-3-8b", "fake-engines"])
def test_an_engines_pod_is_taken(site: Site, deployment: str) -> None:
    path = f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/pods"
    reply = site.api.ask("POST", path, pod_of(deployment), dryRun="All")
    assert reply.is_success, reply.text


# -- envoy/gateway --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oldest(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Another cluster, with the CRDs of the oldest releases that are promised."""
    for _, server in fresh(tmp_path_factory.mktemp("oldest")):
        install_crds(server.api, OLDEST)
        for name in (deployed.NAMESPACE, deployed.ENGINES_NAMESPACE):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            server.api.create("/api/v1/namespaces", namespace)
        yield server.api


def gateway_ids(folder: Path) -> str:
    return str(folder.relative_to(deployed.ROOT / "envoy"))


@pytest.mark.parametrize("release", [NEWEST[0], OLDEST[0]])
@pytest.mark.parametrize("folder", deployed.gateway_folders(), ids=gateway_ids)
def test_a_kustomization_of_envoy_gateway_is_applied(
    site: Site, oldest: Api, folder: Path, release: str
) -> None:
    api = site.api if release == NEWEST[0] else oldest
    for obj in deployed.built(folder):
        reply = api.apply(obj)
        assert reply.is_success, f"{deployed.title(obj)}: {reply.text}"


def test_the_real_cel_refuses_what_no_schema_can(site: Site) -> None:
    """A listener of HTTP with TLS; and a policy that points at a kind that it cannot."""
    objects = [o for f in deployed.gateway_folders() for o in deployed.built(f)]
    gateway = copy.deepcopy(next(o for o in objects if o["kind"] == "Gateway"))
    gateway["spec"]["listeners"] = [
        {"name": "http", "port": 80, "protocol": "HTTP", "tls": {"mode": "Terminate"}}
    ]
    policy = copy.deepcopy(next(o for o in objects if o["kind"] == "EnvoyExtensionPolicy"))
    policy["spec"]["targetRefs"] = [{"group": "", "kind": "Service", "name": "engines"}]
    for obj in (gateway, policy):
        reply = site.api.apply(obj, dryRun="All")
        assert reply.status_code == 422, reply.text
