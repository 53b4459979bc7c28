"""How much discovery takes: sources, names, listings and files; and what it does past that."""

import logging
from pathlib import Path

import pytest

from aibrix_extproc.discovery import endpoints_file, kube_pages, kube_watch
from aibrix_extproc.discovery.endpoints_file import EndpointsFile
from aibrix_extproc.discovery.endpoints_format import BadEndpoints, parse_pods
from aibrix_extproc.discovery.pods import ListedModel, Pod, PodFacts, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.fake_kube import FakeKube, kube_pod
from tests.unit.discovery.kubernetes_rig import until, watching


def pod(name: str, ranks: int = 1, **more: object) -> Pod:
    fields = {"ranks": tuple(Rank(number) for number in range(ranks)), "kv_events": True} | more
    return Pod("default", name, "uid", f"10.0.0.1:{8000 + ord(name[0])}", "llama", **fields)


def registry(**limits: int) -> tuple[Registry, Metrics]:
    metrics = Metrics()
    return Registry(metrics, **limits), metrics


def names(known: Registry) -> list[str]:
    return [one.name for one in known.pods()]


def errors(metrics: Metrics, reason: str) -> float:
    return metrics.discovery_errors.labels(reason)._value.get()


# -- sources ----------------------------------------------------------------------------------


def test_pods_past_the_bound_are_left_out_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    known, metrics = registry(max_sources=2)
    known.replace([pod("a"), pod("b"), pod("c"), pod("d")])
    assert names(known) == ["a", "b"]
    assert errors(metrics, "too_many_sources") == 2
    assert [r.getMessage() for r in caplog.records if "AIBRIX_EXTPROC_MAX_SOURCES" in r.message]
    assert len(caplog.records) == 1


def test_those_that_are_known_keep_their_places() -> None:
    known, _ = registry(max_sources=2)
    known.replace([pod("c"), pod("d")])
    known.replace([pod("a"), pod("b"), pod("c"), pod("d")])
    assert names(known) == ["c", "d"]


def test_one_that_was_left_out_comes_in_when_there_is_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    known, _ = registry(max_sources=2)
    told: list[str] = []
    known.subscribe(lambda before, after: told.append(after.name if after else "gone"))
    known.replace([pod("a"), pod("b")])
    known.upsert(pod("c"))
    known.remove("default/a")
    assert names(known) == ["b", "c"]
    assert told == ["a", "b", "gone", "c"]
    known.remove("default/b")
    assert "→ ok" in caplog.messages[-1]


def test_one_that_went_while_it_was_left_out_does_not_come_in() -> None:
    known, _ = registry(max_sources=1)
    known.replace([pod("a")])
    known.upsert(pod("b"))
    known.remove("default/b")
    known.remove("default/a")
    assert names(known) == []


def test_each_rank_counts_and_ranks_that_a_pod_says_too() -> None:
    known, metrics = registry(max_sources=4)
    known.replace([pod("a", ranks=3), pod("b", ranks=2), pod("c")])
    assert names(known) == ["a", "c"]
    ranks = tuple(Rank(number, f"tcp://10.0.0.1:{5557 + number}") for number in range(5))
    known.learn(pod("c").identity, PodFacts(ranks=ranks))
    assert len(known.pods()[1].ranks) == 1
    assert errors(metrics, "too_many_sources") == 2


def test_what_is_left_out_is_bounded_too() -> None:
    known, _ = registry(max_sources=2)
    known.replace([pod(chr(97 + number)) for number in range(20)])
    assert len(known._left_out) == 2


# -- names ------------------------------------------------------------------------------------


def test_names_past_the_bound_are_unknown_and_the_labels_own_go_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known, metrics = registry(max_names=3)
    known.replace([pod("a")])
    listed = tuple(ListedModel(f"adapter-{number}", "llama") for number in range(5))
    known.learn(pod("a").identity, PodFacts(models=listed))
    assert known.model_names() == ("adapter-0", "adapter-1", "llama")
    assert known.resolve("adapter-4") is None
    assert errors(metrics, "too_many_names") == 1
    assert "AIBRIX_EXTPROC_MAX_MODELS" in caplog.text


# -- Kubernetes -------------------------------------------------------------------------------


async def test_a_sudden_empty_listing_takes_no_pod_away(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    kube.apply(kube_pod("b"))
    async with watching(kube) as watcher:
        await watcher.see("a", "b")
        pods = {key: kube._pods.pop(key) for key in list(kube._pods)}  # gone without an event
        kube.compact()
        kube.drop_watches()
        await until(lambda: watcher.errors("kubernetes_empty") >= 3)
        assert watcher.names() == ["a", "b"]
        kube._pods.update(pods)
        kube.apply(kube_pod("c"))
        await watcher.see("a", "b", "c")
        assert None not in [after for _, after in watcher.changes]


async def test_one_that_stays_empty_is_believed_after_the_grace(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube, empty_listing_grace_s=0.2) as watcher:
        await watcher.see("a")
        kube._pods.clear()
        kube.compact()
        kube.drop_watches()
        await until(lambda: watcher.errors("kubernetes_empty"))
        await watcher.see()


async def test_a_fleet_that_is_deleted_pod_by_pod_is_gone_at_once(kube: FakeKube) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        kube.delete("default/a")
        await watcher.see()
        kube.compact()
        kube.drop_watches()
        await until(lambda: len(kube.lists) > 1)
        assert watcher.errors("kubernetes_empty") == 0


@pytest.mark.parametrize("bound", ["MAX_PAGE_BYTES", "MAX_LISTED"])
async def test_a_listing_past_its_bounds_leaves_the_pods_as_they_were(
    kube: FakeKube,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
) -> None:
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        monkeypatch.setattr(kube_pages, bound, {"MAX_PAGE_BYTES": 4096, "MAX_LISTED": 9}[bound])
        kube.compact()
        for number in range(20):
            kube._pods[f"default/p{number}"] = kube_pod(f"p{number}")
        kube.drop_watches()
        await until(lambda: watcher.errors("kubernetes_too_large"))
        assert watcher.names() == ["a"]


async def test_a_line_without_end_is_given_up(
    kube: FakeKube,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube_watch, "_MAX_LINE_BYTES", 4096)
    kube.apply(kube_pod("a"))
    async with watching(kube) as watcher:
        await watcher.see("a")
        await until(lambda: kube.open_watches)
        kube.send_raw(b"x" * 10_000)
        await until(lambda: watcher.errors("kubernetes_watch"))
        assert watcher.names() == ["a"]


# -- the endpoints file -----------------------------------------------------------------------


async def test_a_file_past_its_bound_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints_file, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "pods.yaml"
    path.write_text("pods: []\n" + "#" * 1000)
    known, metrics = registry()
    with pytest.raises(SettingsError, match="larger than 1000 bytes"):
        await EndpointsFile(str(path), known, Settings(), metrics).start()


def test_aliases_that_multiply_make_no_endless_message() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        copies = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{copies}]")
    text = "\n".join([*lines, "pods:", "- {name: *a8, model: m, address: '10.0.0.1:1'}"])
    with pytest.raises(BadEndpoints) as refused:
        parse_pods(text, 5557, 5657)
    assert len(str(refused.value)) < 5_000
