"""Kubernetes discovery keeps up: watches that end, are refused, fall silent or break."""

import logging

import pytest

from aibrix_extproc.discovery.kube_watch import REASONS, Timing
from tests.fake_kube import FakeKube, kube_pod
from tests.unit.discovery.kubernetes_rig import until, watching

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
