"""Kubernetes discovery against an API server over real HTTP, by the official client."""

import asyncio
from typing import Any

import pytest

from aibrix_extproc.discovery.kubernetes import load_client
from aibrix_extproc.errors import SettingsError
from tests.fake_kube import MODEL_LABEL, FakeKube, kube_pod
from tests.unit.discovery.kubernetes_rig import Watcher, until, watching

# -- listing ----------------------------------------------------------------------------------


async def test_pods_with_the_label_are_listed_in_all_namespaces(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    kube.apply(kube_pod("b", namespace="other"))
    kube.apply(kube_pod("c", labels={"app": "web"}))
    async with watching(kube) as watcher:
        await watcher.see("a", "b")
    assert kube.paths[0] == "/api/v1/pods"
    assert kube.lists[0]["labelSelector"] == MODEL_LABEL


async def test_only_the_set_namespace_is_listed_and_watched(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    kube.apply(kube_pod("b", namespace="other"))
    async with watching(kube, namespace="other") as watcher:
        await watcher.see("b")
        await until(lambda: kube.open_watches)
    assert set(kube.paths) == {"/api/v1/namespaces/other/pods"}


async def test_a_long_listing_comes_in_pages_and_counts_only_when_complete(
    kube: FakeKube,
) -> None:
    kube.max_page = 2
    for i in range(5):
        kube.apply(kube_pod(f"p{i}"))
    async with watching(kube) as watcher:
        await watcher.see("p0", "p1", "p2", "p3", "p4")
    assert ["continue" in query for query in kube.lists] == [False, True, True]
    assert {query["limit"] for query in kube.lists} == {"500"}
    assert [before for before, _ in watcher.changes] == [None] * 5


async def test_pages_that_expire_are_followed_by_one_listing_without_a_limit(
    kube: FakeKube,
) -> None:
    kube.max_page = 2
    kube.expire_continue = True
    for i in range(5):
        kube.apply(kube_pod(f"p{i}"))
    async with watching(kube) as watcher:
        await watcher.see("p0", "p1", "p2", "p3", "p4")
    assert "limit" not in kube.lists[2]


async def test_an_object_that_cannot_be_read_costs_itself_alone(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    odd = kube_pod("odd")
    odd["spec"]["containers"] = "none"
    kube.apply(odd)
    async with watching(kube) as watcher:
        await watcher.see("a")
        assert watcher.errors("kubernetes_object") == 1
        kube.apply(odd)
        kube.apply(kube_pod("b"))
        await watcher.see("a", "b")
        assert watcher.errors("kubernetes_object") == 2


async def test_a_pod_is_gone_although_its_last_object_cannot_be_read(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    kube.apply(kube_pod("b"))
    async with watching(kube) as watcher:
        await watcher.see("a", "b")
        await until(lambda: kube.open_watches)
        odd = kube_pod("a")
        odd["spec"]["containers"] = "none"
        kube.send_event("DELETED", odd)
        await watcher.see("b")


async def test_a_line_that_is_no_utf8_is_a_broken_line(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        kube.send_raw(b'{"type": "ADDED\xff", "object": {}}\n')
        await until(lambda: watcher.errors("kubernetes_watch") == 1)
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        assert watcher.errors("kubernetes_fault") == 0


# -- what happens to a pod --------------------------------------------------------------------


async def test_pods_come_change_and_go_as_they_are_watched(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await watcher.see()
        kube.apply(kube_pod("a", ip=None, phase="Pending"))
        kube.apply(kube_pod("b"))
        await watcher.see("b")
        kube.apply(kube_pod("a"))
        await watcher.see("a", "b")
        kube.apply(kube_pod("a", ready=False))
        await until(lambda: not watcher.registry.pods()[0].ready)
        kube.delete("default/a")
        await watcher.see("b")
        kube.apply(kube_pod("b", phase="Failed"))
        await watcher.see()
    assert len(kube.lists) == 1


async def test_a_pod_that_terminates_stays_unready_until_it_is_deleted(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.apply(kube_pod("a", deleting=True))
        await until(lambda: not watcher.registry.pods()[0].ready)
        kube.delete("default/a")
        await watcher.see()


async def test_a_pod_relabelled_to_another_model_serves_that_one(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.apply(kube_pod("a", labels={MODEL_LABEL: "qwen"}))
        await until(lambda: watcher.registry.model_names() == ("qwen",))


async def test_a_pod_that_loses_its_event_label_sends_no_events(kube: FakeKube) -> None:
    events = {MODEL_LABEL: "llama", "model.aibrix.ai/kv-events-enabled": "true"}
    kube.apply(kube_pod("a", labels=events))
    async with watching(kube) as watcher:
        await until(lambda: watcher.names() and watcher.registry.pods()[0].kv_events)
        assert watcher.registry.pods()[0].ranks[0].event_endpoint == "tcp://10.0.0.1:5557"
        kube.apply(kube_pod("a"))
        await until(lambda: not watcher.registry.pods()[0].kv_events)
        assert watcher.registry.pods()[0].ranks[0].event_endpoint is None


async def test_a_pod_that_loses_the_model_label_is_gone(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.apply(kube_pod("a", labels={"app": "web"}))
        await watcher.see()


async def test_another_uid_under_the_same_name_is_another_engine(kube: FakeKube) -> None:
    kube.apply(kube_pod("a", uid="first"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.delete("default/a")
        kube.apply(kube_pod("a", uid="second"))
        await until(lambda: watcher.names() and watcher.registry.pods()[0].uid == "second")


async def test_a_wrong_label_is_told_once_and_counted(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {MODEL_LABEL: "llama", "model.aibrix.ai/lora-id": "first"}
    kube.apply(kube_pod("a", labels=bad))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.apply(kube_pod("a", labels=bad, ready=False))
        await until(lambda: not watcher.registry.pods()[0].ready)
        assert watcher.errors("kubernetes_pod") == 1
    assert caplog.text.count("model.aibrix.ai/lora-id is 'first'") == 1


# -- life -------------------------------------------------------------------------------------


async def test_close_wakes_a_watch_that_waits(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        thread = watcher.pods._thread
        assert thread is not None
        async with asyncio.timeout(5):  # the watch itself would wait for a minute
            await watcher.pods.close()
        assert not thread.is_alive()


async def test_nothing_reaches_the_registry_after_close(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await watcher.see()
        await watcher.pods.close()
        kube.apply(kube_pod("a"))
        watcher.pods.listed([])  # as a thread that was late would
        await asyncio.sleep(0)
        assert watcher.changes == []


async def test_close_without_start_is_harmless(kube: FakeKube) -> None:
    watcher = Watcher(kube)
    await watcher.pods.close()
    watcher.client.close()


def test_without_a_cluster_the_start_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_ENDPOINTS_FILE"):
        load_client()
