"""One real cluster for all tests of this folder, with the CRDs and every manifest in it."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.kube.cluster import Api, ApiServer, Cluster, cluster
from tests.manifests import deployed, derive_crd_schemas, derive_kube_schemas
from tests.support import eventually

Json = dict[str, Any]

PROGRAMS = deployed.ROOT / ".tools" / "bin"
NEWEST = ("envoy-gateway 1.9.1", "inference-extension 1.5.0")
OLDEST = ("envoy-gateway 1.6.0", "inference-extension 1.0.0")


def pytest_report_header() -> str:
    """Which versions are tested, for who keeps the output."""
    found = [_first_line(PROGRAMS / name) for name in ("etcd", "kube-apiserver")]
    return ", ".join([*found, *NEWEST, *OLDEST, derive_kube_schemas.PROMETHEUS])


def _first_line(program: Path) -> str:
    if not program.exists():
        return f"no {program.name}"
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0]


@dataclass
class Site:
    """The cluster, its API server, and what it said to each manifest."""

    cluster: Cluster
    server: ApiServer
    applied: dict[str, httpx.Response]

    @property
    def api(self) -> Api:
        return self.server.api

    def account(self, name: str) -> Api:
        """The API as a ServiceAccount of ours sees it, by a token of its own."""
        path = f"/api/v1/namespaces/{deployed.NAMESPACE}/serviceaccounts/{name}/token"
        return self.server.api_of(self.api.create(path, {"spec": {}})["status"]["token"])


def crd_files(releases: tuple[str, ...]) -> Iterator[Json]:
    """The CRDs that these releases install, and the Prometheus Operator's."""
    for release in releases:
        module, folder = derive_crd_schemas.SOURCES[release]
        for path in sorted((derive_crd_schemas.module_folder(module) / folder).rglob("*.yaml")):
            yield from _crds(path)
    folder_of_operator = derive_kube_schemas.module_folder(derive_kube_schemas.PROMETHEUS)
    for plural in derive_kube_schemas.CRDS:
        name = f"monitoring.coreos.com_{plural}.yaml"
        yield from _crds(folder_of_operator / "example" / "prometheus-operator-crd" / name)


def _crds(path: Path) -> Iterator[Json]:
    for one in yaml.load_all(path.read_text(), yaml.CSafeLoader):
        if one and one["kind"] == "CustomResourceDefinition":
            yield one


def install_crds(api: Api, releases: tuple[str, ...]) -> None:
    """All of them, and wait until they are served."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    names = [api.create(path, crd)["metadata"]["name"] for crd in crd_files(releases)]
    for name in names:
        eventually(lambda n=name: _served(api.get(f"{path}/{n}")), timeout_s=60)


def _served(crd: Json) -> bool:
    conditions = crd.get("status", {}).get("conditions", [])
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def fresh(tmp: Path) -> Iterator[tuple[Cluster, ApiServer]]:
    """A cluster with nothing in it; skips where its programs were not built."""
    for program in ("etcd", "kube-apiserver", "kustomize"):
        if not (PROGRAMS / program).exists():
            pytest.skip(f"no {program}: make kube-test builds it where go is")
    with cluster(tmp, PROGRAMS) as made:
        yield made, made.server()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    for made, server in fresh(tmp_path_factory.mktemp("cluster")):
        install_crds(server.api, NEWEST)
        applied = {}
        for obj in deployed.everything():
            if obj["kind"] not in {"ClusterRole", "ClusterRoleBinding"}:
                applied[deployed.title(obj)] = server.api.apply(obj)
            # What a controller does in each new namespace; pods need it.
            if obj["kind"] == "Namespace":
                _default_account(server.api, obj["metadata"]["name"])
        yield Site(made, server, applied)


def _default_account(api: Api, namespace: str) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
