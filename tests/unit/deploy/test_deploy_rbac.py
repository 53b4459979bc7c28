"""The roles allow what the code asks of Kubernetes, and nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.kubernetes import KubernetesPods
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.doctor.kubernetes_reads import KUBERNETES_READS
from aibrix_extproc.metrics import Metrics
from tests.fake_kube import FakeKube, kube_pod
from tests.manifests import deployed
from tests.support import eventually_async

Json = dict[str, Any]
Right = tuple[str, str, str]
"""API group, resource, verb."""

OBJECTS = deployed.processor()


def rights(role: Json) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube().start()
    yield fake
    fake.stop()


async def asked_by_discovery(kube: FakeKube, objects: list[Json]) -> tuple[set[str], set[Right]]:
    """The paths and rights that the real discovery uses, with the manifests' own settings."""
    kube.apply(kube_pod("a", namespace=deployed.ENGINES_NAMESPACE))
    configuration = Configuration(host=kube.url)
    configuration.retries = 0
    client = ApiClient(configuration)
    metrics = Metrics()
    registry = Registry(metrics)
    pods = KubernetesPods(registry, deployed.settings(objects), metrics, client)
    await pods.start()
    await eventually_async(lambda: kube.open_watches and registry.pods())
    await pods.close()
    client.close()
    verbs = {"list"} if kube.lists else set()
    verbs |= {"watch"} if kube.watches else set()
    return set(kube.paths), {("", "pods", verb) for verb in verbs}


async def test_discovery_needs_what_its_role_allows_in_its_namespace(kube: FakeKube) -> None:
    paths, needed = await asked_by_discovery(kube, OBJECTS)
    role = deployed.find(OBJECTS, "Role")
    assert paths == {f"/api/v1/namespaces/{role['metadata']['namespace']}/pods"}
    assert needed == {("", "pods", "list"), ("", "pods", "watch")}
    # `get` beside: kubectl and the client ask by it, and it shows nothing that `list` does not.
    assert rights(role) == needed | {("", "pods", "get")}
    assert not [o for o in OBJECTS if o["kind"] in {"ClusterRole", "ClusterRoleBinding"}]


async def test_pods_of_all_namespaces_need_the_cluster_role_instead(kube: FakeKube) -> None:
    objects = deployed.processor("all-namespaces")
    paths, _ = await asked_by_discovery(kube, objects)
    assert paths == {"/api/v1/pods"}
    cluster_wide = deployed.find(objects, "ClusterRole")
    assert rights(cluster_wide) == rights(deployed.find(OBJECTS, "Role"))
    assert not [o for o in objects if o["kind"] in {"Role", "RoleBinding"}]


def test_doctor_may_read_what_it_says_that_it_reads() -> None:
    role = deployed.find(deployed.everything(), "Role", "aibrix-extproc-doctor")
    assert rights(role) == {
        (read.api_group, read.resource, verb) for read in KUBERNETES_READS for verb in read.verbs
    }


@pytest.mark.parametrize("name", ["aibrix-extproc", "aibrix-extproc-doctor"])
def test_a_binding_gives_the_role_to_the_account_that_exists(name: str) -> None:
    objects = deployed.everything()
    account = deployed.find(objects, "ServiceAccount", name)["metadata"]
    for binding in (o for o in objects if o["kind"].endswith("Binding")):
        if binding["metadata"]["name"] != name:
            continue
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
        kind = binding["kind"].removesuffix("Binding")
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (kind, name)
        assert deployed.find(objects, kind, name)


def test_the_pods_run_under_that_account() -> None:
    assert deployed.pod_spec(OBJECTS)["serviceAccountName"] == deployed.NAME
