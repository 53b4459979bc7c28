"""Kubernetes discovery against an API server over real HTTP, by the official client."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from aibrix_extproc.discovery.kube_watch import REASONS, Timing
from aibrix_extproc.discovery.kubernetes import KubernetesPods, load_client
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.fake_kube import MODEL_LABEL, FakeKube, kube_pod
from tests.support import eventually_async

QUICK = Timing(backoff_s=0.02, backoff_max_s=0.1)


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube().start()
    yield fake
    fake.stop()


class Watcher:
    """A KubernetesPods with its registry and metrics."""

    def __init__(self, kube: FakeKube, timing: Timing = QUICK, **settings: Any) -> None:
        configuration = Configuration(host=kube.url)
        configuration.retries = 0
        self.client = ApiClient(configuration)
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.changes: list[tuple[Pod | None, Pod | None]] = []
        self.registry.subscribe(lambda before, after: self.changes.append((before, after)))
        self.pods = KubernetesPods(
            self.registry, Settings(**settings), self.metrics, self.client, timing
        )

    def names(self) -> list[str]:
        return [pod.name for pod in self.registry.pods()]

    def errors(self, reason: str) -> float:
        return self.metrics.discovery_errors.labels(reason)._value.get()

    async def see(self, *names: str) -> None:
        await eventually_async(lambda: self.registry.listed and self.names() == list(names))


@asynccontextmanager
async def watching(kube: FakeKube, **kwargs: Any) -> AsyncIterator[Watcher]:
    watcher = Watcher(kube, **kwargs)
    await watcher.pods.start()
    try:
        yield watcher
    finally:
        await watcher.pods.close()
        watcher.client.close()


async def until(check: Callable[[], Any]) -> None:
    await eventually_async(lambda: bool(check()))


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


# -- keeping up -------------------------------------------------------------------------------


async def test_a_dropped_watch_goes_on_from_its_last_event_without_a_listing(
    kube: FakeKube,
) -> None:
    async with watching(kube) as watcher:
        await watcher.see()
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        last = kube._version
        kube.drop_watches()
        kube.apply(kube_pod("b"))
        await watcher.see("a", "b")
        assert watcher.errors("kubernetes_connection") == 1
    assert kube.watches[1]["resourceVersion"] == str(last)
    assert len(kube.lists) == 1


async def test_a_bookmark_moves_the_version_that_a_watch_goes_on_from(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        assert kube.watches[0]["allowWatchBookmarks"] == "true"
        version = kube.bookmark()
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        kube.delete("default/a")
        version = kube.bookmark()
        await watcher.see()
        kube.drop_watches()
        await until(lambda: len(kube.watches) == 2)
    assert kube.watches[1]["resourceVersion"] == version
    assert len(kube.lists) == 1


@pytest.mark.parametrize(("chunked", "gzip"), [(False, False), (True, True), (False, True)])
async def test_an_event_is_seen_at_once_however_the_watch_is_sent(
    kube: FakeKube, chunked: bool, gzip: bool
) -> None:
    kube.chunked, kube.gzip = chunked, gzip
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        for name in ("a", "b"):
            kube.apply(kube_pod(name))
            await until(lambda name=name: name in watcher.names())
        kube.delete("default/a")
        await watcher.see("b")
    assert len(kube.lists) == 1
    assert len(kube.watches) == 1


async def test_a_watch_that_the_server_ends_goes_on_quietly(kube: FakeKube) -> None:
    timing = Timing(watch_s=1.0, backoff_s=0.02)
    async with watching(kube, timing=timing) as watcher:
        await until(lambda: len(kube.watches) >= 2)
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        assert [watcher.errors(reason) for reason in REASONS] == [0] * len(REASONS)
    assert len(kube.lists) == 1


async def test_a_watch_that_falls_silent_is_taken_for_dead_and_goes_on(kube: FakeKube) -> None:
    impatient = Timing(watch_s=0.1, watch_grace_s=0.1, backoff_s=0.02)
    async with watching(kube, timing=impatient) as watcher:
        await until(lambda: watcher.errors("kubernetes_connection") >= 1)
        kube.apply(kube_pod("a"))
        await watcher.see("a")
    assert len(kube.lists) == 1


async def test_a_watch_that_stayed_open_ends_the_back_off_though_it_brought_no_event(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aibrix_extproc.discovery.kube_watch._RESUME_S", 0.0)
    kube.list_status = 503
    async with watching(kube) as watcher:
        await until(lambda: watcher.errors("kubernetes_status") >= 4)
        kube.list_status = None
        await until(lambda: kube.open_watches)
        watch = watcher.pods._watch
        assert watch is not None
        assert watch._failures >= 4
        kube.drop_watches()
        await until(lambda: watcher.errors("kubernetes_connection") == 1)
        await until(lambda: watch._failures == 1)


@pytest.mark.parametrize("as_event", [False, True], ids=["by status", "by an ERROR event"])
async def test_a_version_that_is_gone_brings_a_new_listing_and_removals(
    kube: FakeKube, as_event: bool
) -> None:
    kube.gone_as_event = as_event
    kube.apply(kube_pod("a"))
    kube.apply(kube_pod("b"))
    async with watching(kube) as watcher:
        await watcher.see("a", "b")
        await until(lambda: kube.open_watches)
        kube.stop()
        kube.delete("default/a")
        kube.apply(kube_pod("c"))
        kube.compact()
        kube.start()
        await watcher.see("b", "c")
        assert watcher.errors("kubernetes_expired") == 1
        kube.apply(kube_pod("d"))
        await watcher.see("b", "c", "d")
    assert len(kube.lists) == 2


async def test_a_watch_that_is_always_gone_does_not_list_in_a_hot_loop(kube: FakeKube) -> None:
    kube.watch_status = 410
    slow = Timing(backoff_s=60.0, backoff_max_s=60.0)
    async with watching(kube, timing=slow) as watcher:
        await until(lambda: watcher.errors("kubernetes_expired") == 2)
        assert len(kube.lists) == 2


async def test_while_the_api_server_is_away_the_last_known_pods_stay(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    kube.apply(kube_pod("a"))
    with caplog.at_level(logging.INFO):
        async with watching(kube) as watcher:
            await watcher.see("a")
            await until(lambda: kube.open_watches)
            kube.stop()
            await until(lambda: watcher.errors("kubernetes_connection") >= 3)
            assert watcher.names() == ["a"]
            kube.apply(kube_pod("b"))
            kube.start()
            await watcher.see("a", "b")
    assert len(kube.lists) == 1
    assert caplog.text.count("ok → kubernetes_connection") == 1
    assert caplog.text.count("kubernetes_connection → ok") == 1


async def test_an_api_server_that_is_away_at_the_start_is_waited_for(kube: FakeKube) -> None:
    kube.stop()
    async with watching(kube) as watcher:
        await until(lambda: watcher.errors("kubernetes_connection") >= 2)
        assert not watcher.registry.listed
        kube.apply(kube_pod("a"))
        kube.start()
        await watcher.see("a")


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_refused_listing_is_tried_again_and_told_once(
    kube: FakeKube, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    kube.apply(kube_pod("a"))
    kube.list_status = status
    reason = "kubernetes_denied" if status in {401, 403} else "kubernetes_status"
    async with watching(kube) as watcher:
        await until(lambda: watcher.errors(reason) >= 3)
        assert not watcher.registry.listed
        kube.list_status = None
        await watcher.see("a")
    assert caplog.text.count(f"ok → {reason}") == 1


async def test_a_refused_watch_keeps_the_pods_and_goes_on_when_it_may(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    kube.watch_status = 403
    async with watching(kube) as watcher:
        await until(lambda: watcher.errors("kubernetes_denied") >= 3)
        assert watcher.names() == ["a"]
        kube.apply(kube_pod("b"))
        kube.watch_status = None
        await watcher.see("a", "b")
    assert len(kube.lists) == 1


async def test_a_watch_refused_again_and_again_is_followed_by_a_listing(kube: FakeKube) -> None:
    kube.watch_status = 504  # "too large resource version", after etcd was restored
    async with watching(kube) as watcher:
        await until(lambda: len(kube.lists) >= 2)
        assert watcher.errors("kubernetes_status") >= 3


async def test_a_broken_line_is_counted_and_the_watch_goes_on_after_it(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        kube.send_raw(b'{"type": "ADDED", "obj\n')
        await until(lambda: watcher.errors("kubernetes_watch") == 1)
        kube.apply(kube_pod("b"))
        await watcher.see("a", "b")
    assert len(kube.lists) == 1


async def test_unknown_events_and_empty_lines_are_passed_over(kube: FakeKube) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        kube.send_raw(b"\n")
        kube.send_event("NOVELTY", {"surprise": 1})
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        assert [watcher.errors(reason) for reason in REASONS] == [0] * len(REASONS)
    assert len(kube.watches) == 1


async def test_an_error_event_other_than_gone_goes_on_from_the_last_version(
    kube: FakeKube,
) -> None:
    async with watching(kube) as watcher:
        await until(lambda: kube.open_watches)
        kube.apply(kube_pod("a"))
        await watcher.see("a")
        kube.send_event("ERROR", {"kind": "Status", "code": 500, "reason": "InternalError"})
        await until(lambda: watcher.errors("kubernetes_watch") == 1)
        kube.apply(kube_pod("b"))
        await watcher.see("a", "b")
    assert len(kube.lists) == 1


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
