"""The real discovery against a real API server: what the registry holds is what pods are.

There is no kubelet: tests write the status of pods as one would.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.kube_watch import USUAL, Timing
from aibrix_extproc.discovery.kubernetes import KubernetesPods
from aibrix_extproc.discovery.pods import MODEL_LABEL
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.stack.processes import Processes
from tests.kube.cluster import Api
from tests.kube.conftest import Site
from tests.manifests import deployed
from tests.support import eventually_async, free_port

Json = dict[str, Any]

pytestmark = pytest.mark.kube

PODS = f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/pods"
TEMPLATE: Json = deployed.find(deployed.everything(), "Deployment", "fake-engines")["spec"][
    "template"
]
SETTINGS = deployed.settings(deployed.processor())


# -- pods, as a controller makes them and a kubelet reports on them -------------------------


def create(api: Api, name: str, labels: dict[str, str] | None = None, path: str = PODS) -> None:
    """A pod of the example engines' template."""
    metadata = {"name": name, "labels": {**TEMPLATE["metadata"]["labels"], **(labels or {})}}
    # On a node, so that a deletion waits for its kubelet.
    spec = {**TEMPLATE["spec"], "nodeName": "node-1"}
    api.create(path, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def report(api: Api, name: str, ip: str, *, ready: bool = True, phase: str = "Running") -> None:
    """What the kubelet writes once the pod has an address."""
    status = {
        "phase": phase,
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
    }
    patch(api, f"{PODS}/{name}/status", {"status": status})


def patch(api: Api, path: str, body: Json) -> None:
    reply = api._http.patch(
        path, json=body, headers={"content-type": "application/merge-patch+json"}
    )
    assert reply.is_success, reply.text


class Watcher:
    """A KubernetesPods with its registry, under the processor's own account."""

    def __init__(self, site: Site, timing: Timing = USUAL) -> None:
        account = site.account(deployed.NAME)
        configuration = Configuration(host=account.url)
        configuration.ssl_ca_cert = str(account.ca)
        configuration.api_key = {"authorization": f"Bearer {account.token}"}
        configuration.retries = 0
        self.client = ApiClient(configuration)
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.relistings = 0
        self.pods = KubernetesPods(self.registry, SETTINGS, self.metrics, self.client, timing)
        listed = self.pods.listed

        def counting(pods: Any) -> bool:
            self.relistings += 1
            return listed(pods)

        self.pods.listed = counting  # type: ignore[method-assign]

    def seen(self) -> dict[str, bool]:
        """Each pod's name, and whether it is ready."""
        return {pod.name: pod.ready for pod in self.registry.pods()}

    async def see(self, **pods: bool) -> None:
        wanted = {name.replace("_", "-"): ready for name, ready in pods.items()}
        await eventually_async(lambda: self.registry.listed and self.seen() == wanted, 30)

    def errors(self, reason: str) -> float:
        return float(self.metrics.discovery_errors.labels(reason)._value.get())

    @property
    def version(self) -> str | None:
        """Where its next watch would begin."""
        return self.pods._watch._version if self.pods._watch else None


@asynccontextmanager
async def watching(site: Site, timing: Timing = USUAL) -> AsyncIterator[Watcher]:
    watcher = Watcher(site, timing)
    await watcher.pods.start()
    try:
        yield watcher
    finally:
        await watcher.pods.close()
        watcher.client.close()


@pytest.fixture(autouse=True)
def no_pods_before(site: Site) -> None:
    for pod in site.api.get(PODS)["items"]:
        site.api.delete(f"{PODS}/{pod['metadata']['name']}")


# -- the life of a pod ----------------------------------------------------------------------


async def test_a_pod_is_followed_from_its_creation_to_its_end(site: Site) -> None:
    async with watching(site) as watcher:
        create(site.api, "a")
        await eventually_async(lambda: watcher.registry.listed)
        assert watcher.seen() == {}  # it has no address yet
        report(site.api, "a", "10.1.0.1", ready=False)
        await watcher.see(a=False)
        report(site.api, "a", "10.1.0.1")
        await watcher.see(a=True)
        (pod,) = watcher.registry.pods()
        assert (pod.model, pod.address) == ("tiny", "10.1.0.1:8000")
        assert pod.ranks[0].replay_endpoint == "tcp://10.1.0.1:5657"
        # A delete with grace: there, and no candidate, until the kubelet has ended it.
        assert site.api.ask("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 30}).is_success
        await watcher.see(a=False)
        site.api.ask("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 0})
        await watcher.see()
        assert watcher.relistings == 1


async def test_labels_that_come_and_go_make_a_pod_come_and_go(site: Site) -> None:
    async with watching(site) as watcher:
        create(site.api, "a")
        report(site.api, "a", "10.1.0.1")
        await watcher.see(a=True)
        patch(site.api, f"{PODS}/a", {"metadata": {"labels": {MODEL_LABEL: None}}})
        await watcher.see()
        patch(site.api, f"{PODS}/a", {"metadata": {"labels": {MODEL_LABEL: "other"}}})
        await watcher.see(a=True)
        assert [pod.model for pod in watcher.registry.pods()] == ["other"]


async def test_a_pod_that_ended_is_gone_and_one_elsewhere_never_came(site: Site) -> None:
    elsewhere = f"/api/v1/namespaces/{deployed.NAMESPACE}/pods"
    create(site.api, "elsewhere", path=elsewhere)
    async with watching(site) as watcher:
        for name in ("a", "b"):
            create(site.api, name)
            report(site.api, name, "10.1.0.1" if name == "a" else "10.1.0.2")
        await watcher.see(a=True, b=True)
        report(site.api, "a", "10.1.0.1", ready=False, phase="Succeeded")
        await watcher.see(b=True)
    site.api.delete(f"{elsewhere}/elsewhere")


async def test_a_fleet_of_more_than_one_page_is_listed_whole(site: Site) -> None:
    for number in range(510):
        create(site.api, f"p{number}")
    for number in (0, 509):
        report(site.api, f"p{number}", f"10.2.0.{number % 250}")
    async with watching(site) as watcher:
        await watcher.see(p0=True, p509=True)
        assert watcher.relistings == 1
    for number in range(510):
        site.api.delete(f"{PODS}/p{number}")


# -- the watch ------------------------------------------------------------------------------


async def test_bookmarks_carry_the_watch_on_where_no_pod_changes(site: Site) -> None:
    """Other objects move the version; without bookmarks the watch would go back to its start."""
    async with watching(site, Timing(watch_s=3.0)) as watcher:
        create(site.api, "a")
        report(site.api, "a", "10.1.0.1")
        await watcher.see(a=True)
        before = watcher.version
        path = f"/api/v1/namespaces/{deployed.ENGINES_NAMESPACE}/configmaps"
        other: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x-"}}
        latest = [site.api.create(path, other) for _ in range(20)][-1]
        newest = int(latest["metadata"]["resourceVersion"])
        # Pods have a version of their own in the watch cache; it follows etcd's progress.
        await eventually_async(lambda: int(watcher.version or 0) >= newest, 60)
        assert int(before or 0) < newest
        assert watcher.relistings == 1
        assert watcher.errors("kubernetes_watch") == 0


async def test_a_version_that_was_compacted_away_costs_one_listing(site: Site) -> None:
    """410: the API server was away, pods changed meanwhile, and etcd has forgotten how."""
    other = site.cluster.server()
    async with watching(site, Timing(backoff_s=0.1, backoff_max_s=0.5)) as watcher:
        for name, ip in (("a", "10.1.0.1"), ("b", "10.1.0.2")):
            create(site.api, name)
            report(site.api, name, ip)
        await watcher.see(a=True, b=True)
        site.server.stop()
        await eventually_async(lambda: watcher.errors("kubernetes_connection") > 0, 30)
        assert watcher.seen() == {"a": True, "b": True}  # what is known stays
        other.api.delete(f"{PODS}/a")
        report(other.api, "b", "10.1.0.2", ready=False)
        create(other.api, "c")
        report(other.api, "c", "10.1.0.3")
        site.cluster.compact()
        await asyncio.to_thread(site.server.start)
        await watcher.see(b=False, c=True)
        assert watcher.errors("kubernetes_expired") >= 1
        assert watcher.relistings == 2
    other.stop()


async def test_a_restart_of_the_api_server_loses_nothing(site: Site) -> None:
    async with watching(site, Timing(backoff_s=0.1, backoff_max_s=0.5)) as watcher:
        create(site.api, "a")
        report(site.api, "a", "10.1.0.1")
        await watcher.see(a=True)
        for round_ in range(2):
            site.server.stop()
            await asyncio.to_thread(site.server.start)
            create(site.api, f"b{round_}")
            report(site.api, f"b{round_}", f"10.1.1.{round_}")
            await eventually_async(lambda n=f"b{round_}": watcher.seen().get(n), 30)
        await watcher.see(a=True, b0=True, b1=True)


async def test_an_account_without_the_right_says_so_and_goes_on_once_it_has_it(site: Site) -> None:
    role = deployed.find(deployed.processor(), "RoleBinding")
    site.api.delete(site.api.path_of(role))
    async with watching(site, Timing(backoff_s=0.1, backoff_max_s=0.5)) as watcher:
        await eventually_async(lambda: watcher.errors("kubernetes_denied") > 0, 30)
        assert not watcher.registry.listed
        create(site.api, "a")
        report(site.api, "a", "10.1.0.1")
        assert site.api.apply(role).is_success
        await watcher.see(a=True)


# -- the whole server -----------------------------------------------------------------------


def kubeconfig(site: Site, path: Path) -> Path:
    account = site.account(deployed.NAME)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": account.url, "certificate-authority": str(account.ca)},
            }
        ],
        "users": [{"name": "test", "user": {"token": account.token}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


async def test_serve_follows_the_events_of_a_pod_that_the_api_server_tells_it_of(
    site: Site, tmp_path: Path
) -> None:
    """The shipped variables, the account's own token, a pod whose engine really runs."""
    debug, admin = free_port(), free_port()
    environment = {
        **deployed.environment(deployed.processor()),
        "KUBECONFIG": str(kubeconfig(site, tmp_path / "kubeconfig")),
        "AIBRIX_KV_SNAPSHOT_PATH": str(tmp_path / "index.snapshot"),
        "AIBRIX_EXTPROC_GRPC_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_PEER_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_ADMIN_ADDRESS": f"127.0.0.1:{admin}",
        "AIBRIX_EXTPROC_DEBUG_ADDRESS": f"127.0.0.1:{debug}",
    }
    command = [sys.executable, "-m", "aibrix_extproc.cli", "serve"]
    async with FakeEngine(EngineConfig()) as engine, aiohttp.ClientSession() as http:
        with Processes() as processes:
            processes.spawn("serve", command, environment)
            port = engine.address.rpartition(":")[2]
            create(site.api, "a", {"model.aibrix.ai/port": port})
            report(site.api, "a", "127.0.0.1")

            async def page(port: int, path: str) -> Any:
                try:
                    async with http.get(f"http://127.0.0.1:{port}{path}") as reply:
                        return await reply.json(content_type=None)
                except aiohttp.ClientError:
                    return None

            async def exact() -> bool:
                found = await page(debug, "/debug/sources")
                return bool(found) and [(s["pod"], s["state"]) for s in found] == [
                    ("models/a", "EXACT")
                ]

            await eventually_async(exact, 60)
            models = await page(admin, "/v1/models")
            assert [model["id"] for model in models["data"]] == ["tiny"]
            ready = await page(admin, "/readyz")
            assert ready["ready"] is True
