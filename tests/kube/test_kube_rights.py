"""What the accounts may do, asked with their own tokens."""

from typing import Any

import pytest

from aibrix_extproc.doctor.kubernetes_reads import KUBERNETES_READS
from tests.kube.conftest import Site
from tests.manifests import deployed, kustomize

Json = dict[str, Any]

pytestmark = pytest.mark.kube

PODS = f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/pods"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a"},
    "spec": {"containers": [{"name": "a", "image": "a"}]},
}
FORBIDDEN = [
    ("GET", f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/secrets", None),
    ("GET", f"/api/v1/namespaces/{deployed.NAMESPACE}/secrets/aibrix-extproc-tls", None),
    ("GET", f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/configmaps", None),
    ("GET", f"/api/v1/namespaces/{deployed.NAMESPACE}/pods", None),
    ("GET", "/api/v1/namespaces/kube-system/pods", None),
    ("GET", "/api/v1/pods", None),
    ("GET", "/api/v1/nodes", None),
    ("GET", f"{PODS}/a/log", None),
    ("POST", PODS, POD),
    ("POST", f"{PODS}/a/exec", None),
    ("DELETE", f"{PODS}/a", None),
    ("PATCH", f"{PODS}/a", {}),
    ("POST", f"/api/v1/namespaces/{deployed.NAMESPACE}/serviceaccounts/aibrix-extproc/token", {}),
]


def test_the_processor_may_see_pods_of_the_engines(site: Site) -> None:
    api = site.account(deployed.NAME)
    assert api.ask("GET", PODS).status_code == 200
    assert api.ask("GET", f"{PODS}/none").status_code == 404
    assert api.ask("GET", PODS, watch="1", timeoutSeconds="1").status_code == 200


@pytest.mark.parametrize("account", [deployed.NAME, "aibrix-extproc-doctor"])
@pytest.mark.parametrize(("method", "path", "body"), FORBIDDEN)
def test_an_account_may_nothing_else(
    site: Site, account: str, method: str, path: str, body: Json | None
) -> None:
    reply = site.account(account).ask(method, path, body)
    assert reply.status_code == 403, reply.text


def test_the_processor_sees_no_workloads(site: Site) -> None:
    path = f"/apis/apps/v1/namespaces/{deployed.ENGINES_NAMESPACE}/deployments"
    assert site.account(deployed.NAME).ask("GET", path).status_code == 403


def test_doctor_may_list_what_it_reads_and_not_watch_it(site: Site) -> None:
    api = site.account("aibrix-extproc-doctor")
    for read in KUBERNETES_READS:
        root = f"/apis/{read.api_group}/v1" if read.api_group else "/api/v1"
        path = f"{root}/namespaces/{deployed.ENGINES_NAMESPACE}/{read.resource}"
        assert api.ask("GET", path).status_code == 200
        watched = api.ask("GET", path, watch="1", timeoutSeconds="1")
        assert watched.status_code == (200 if "watch" in read.verbs else 403)


def test_all_namespaces_need_the_cluster_role_and_get_no_more_by_it(site: Site) -> None:
    file = deployed.DEPLOY / "components" / "all-namespaces" / "clusterrole.yaml"
    objects = kustomize.documents(file)
    for obj in objects:
        assert site.api.apply(obj).is_success
    api = site.account(deployed.NAME)
    assert api.ask("GET", "/api/v1/pods").status_code == 200
    assert api.ask("GET", "/api/v1/secrets").status_code == 403
    assert api.ask("POST", PODS, POD).status_code == 403
    for obj in objects:
        site.api.delete(site.api.path_of(obj))
    assert api.ask("GET", "/api/v1/pods").status_code == 403


def test_who_shows_no_token_sees_nothing(site: Site) -> None:
    assert site.server.api_of("none").ask("GET", PODS).status_code == 401
