"""The registry: merge, names, and who is told."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from aibrix_extproc.discovery.pods import ListedModel, Pod, PodFacts, Rank, ServedModel
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics


@pytest.fixture
def registry() -> Registry:
    return Registry(Metrics())


Change = tuple[Pod | None, Pod | None]


@pytest.fixture
def changes(registry: Registry) -> list[Change]:
    told: list[Change] = []
    registry.subscribe(lambda before, after: told.append((before, after)))
    return told


def pod(name: str = "a", model: str = "llama", **fields: Any) -> Pod:
    fields = {"uid": f"uid-{name}", "address": "10.0.0.1:8000"} | fields
    return Pod(namespace="n", name=name, model=model, **fields)


def models(*names: str, **adapters: str) -> PodFacts:
    listed = [ListedModel(n) for n in names] + [ListedModel(a, p) for a, p in adapters.items()]
    return PodFacts(models=tuple(listed))


RANKS = (Rank(0, "tcp://10.0.0.1:6000"), Rank(1, "tcp://10.0.0.1:6001"))


# -- changes ----------------------------------------------------------------------------------


def test_nothing_is_listed_before_the_first_complete_listing(registry: Registry) -> None:
    registry.upsert(pod())
    assert not registry.listed
    registry.replace([])
    assert registry.listed
    assert registry.pods() == ()


def test_a_listing_adds_changes_and_removes(registry: Registry, changes: list[Change]) -> None:
    a, b, c = pod("a"), pod("b"), pod("c")
    registry.replace([b, a])
    assert registry.pods() == (a, b)
    del changes[:]
    unready = replace(a, ready=False)
    registry.replace([unready, c])
    assert registry.pods() == (unready, c)
    assert sorted(changes, key=str) == sorted([(b, None), (a, unready), (None, c)], key=str)


def test_a_listener_sees_the_registry_already_changed(registry: Registry) -> None:
    seen: list[tuple[Pod, ...]] = []
    registry.subscribe(lambda before, after: seen.append(registry.pods()))
    registry.replace([pod("a"), pod("b")])
    assert seen == [registry.pods()] * 2


def test_nobody_is_told_of_what_did_not_change(registry: Registry, changes: list[Change]) -> None:
    registry.upsert(pod())
    registry.upsert(pod())
    registry.replace([pod()])
    registry.remove("n/unknown")
    assert changes == [(None, pod())]


def test_another_identity_under_the_same_key_is_one_change(
    registry: Registry, changes: list[Change]
) -> None:
    registry.upsert(pod())
    registry.upsert(pod(uid="another"))
    assert changes[1:] == [(pod(), pod(uid="another"))]


def test_a_listener_that_fails_hides_nothing_from_the_next(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(before: Pod | None, after: Pod | None) -> None:
        raise ZeroDivisionError

    told: list[Pod | None] = []
    registry.subscribe(broken)
    registry.subscribe(lambda before, after: told.append(after))
    registry.upsert(pod())
    assert told == [pod()]
    assert "ZeroDivisionError" in caplog.text


# -- what a pod said of itself ----------------------------------------------------------------


def test_ranks_that_a_pod_reports_replace_those_declared_and_are_told(
    registry: Registry, changes: list[Change]
) -> None:
    registry.upsert(pod(kv_events=True))
    registry.learn(pod().identity, PodFacts(ranks=RANKS))
    after = pod(kv_events=True, ranks=RANKS)
    assert registry.pods() == (after,)
    assert changes[1:] == [(pod(kv_events=True), after)]


def test_names_that_a_pod_reports_are_no_change_of_the_pod(
    registry: Registry, changes: list[Change]
) -> None:
    registry.upsert(pod())
    registry.learn(pod().identity, models("alias"))
    assert len(changes) == 1
    assert registry.resolve("alias") is not None


def test_ranks_count_only_while_the_pod_sends_events(registry: Registry) -> None:
    registry.upsert(pod(kv_events=True))
    registry.learn(pod().identity, PodFacts(ranks=RANKS))
    registry.upsert(pod(kv_events=False))
    assert registry.pods()[0].ranks == (Rank(),)
    registry.upsert(pod(kv_events=True))
    assert registry.pods()[0].ranks == RANKS


def test_ports_that_the_operator_wrote_rule_over_the_pods_word(registry: Registry) -> None:
    registry.replace([pod(kv_events=True)], ranks_written={"n/a"})
    registry.learn(pod().identity, PodFacts(ranks=RANKS))
    assert registry.pods()[0].ranks == (Rank(),)


def test_what_could_not_be_asked_keeps_what_was_known(registry: Registry) -> None:
    registry.upsert(pod(kv_events=True))
    registry.learn(pod().identity, PodFacts(models=(ListedModel("alias"),), ranks=RANKS))
    registry.learn(pod().identity, PodFacts())
    registry.upsert(pod(kv_events=True, ready=False))
    assert registry.resolve("alias") is not None
    assert registry.pods()[0].ranks == RANKS


def test_facts_do_not_survive_a_new_identity(registry: Registry) -> None:
    registry.upsert(pod(kv_events=True))
    registry.learn(pod().identity, PodFacts(models=(ListedModel("alias"),), ranks=RANKS))
    registry.upsert(pod(kv_events=True, address="10.0.0.2:8000"))
    assert registry.resolve("alias") is None
    assert registry.pods()[0].ranks == (Rank(),)


def test_facts_of_a_pod_that_is_gone_or_another_by_now_are_ignored(registry: Registry) -> None:
    registry.learn(pod().identity, models("alias"))
    registry.upsert(pod(uid="another"))
    registry.learn(pod().identity, models("alias"))
    assert registry.model_names() == ("llama",)


# -- names ------------------------------------------------------------------------------------


def served_by(registry: Registry, name: str) -> list[str]:
    served = registry.resolve(name)
    assert served is not None
    return [p.name for p in registry.candidates(served)]


def test_the_label_means_the_model_and_every_pod_of_the_label(registry: Registry) -> None:
    registry.replace([pod("a"), pod("b"), pod("c", model="qwen")])
    assert registry.resolve("llama") == ServedModel("llama", "llama", None)
    assert served_by(registry, "llama") == ["a", "b"]


def test_an_unknown_name_means_nothing(registry: Registry) -> None:
    registry.upsert(pod())
    assert registry.resolve("gpt") is None
    assert registry.candidates(ServedModel("gpt", "llama")) == ()
    assert not registry.has_pods(ServedModel("gpt", "llama"))


def test_a_listed_id_without_parent_is_an_alias_and_one_with_parent_an_adapter(
    registry: Registry,
) -> None:
    registry.replace([pod("a"), pod("b")])
    registry.learn(pod("a").identity, models("llama", "alias", lora="llama"))
    assert registry.resolve("alias") == ServedModel("alias", "llama", None)
    assert registry.resolve("lora") == ServedModel("lora", "llama", "lora")
    assert served_by(registry, "alias") == served_by(registry, "lora") == ["a"]
    assert served_by(registry, "llama") == ["a", "b"]
    assert registry.model_names() == ("alias", "llama", "lora")


def test_a_declared_adapter_is_served_by_those_that_declare_or_list_it(registry: Registry) -> None:
    registry.replace([pod("a", adapters=("lora",)), pod("b"), pod("c")])
    registry.learn(pod("b").identity, models(lora="llama"))
    assert registry.resolve("lora") == ServedModel("lora", "llama", "lora")
    assert served_by(registry, "lora") == ["a", "b"]


def test_a_name_goes_when_its_pod_no_longer_lists_it(registry: Registry) -> None:
    registry.upsert(pod())
    registry.learn(pod().identity, models(lora="llama"))
    assert registry.resolve("lora") is not None
    registry.learn(pod().identity, models("llama"))
    assert registry.resolve("lora") is None


def test_the_label_of_a_pod_with_a_lora_id_is_itself_an_adapter(registry: Registry) -> None:
    registry.upsert(pod("a", model="my-lora", lora_id=1))
    registry.learn(pod("a").identity, models("base"))
    assert registry.resolve("my-lora") == ServedModel("my-lora", "my-lora", "my-lora")
    assert registry.resolve("base") == ServedModel("base", "my-lora", None)


def test_a_label_that_its_pod_lists_with_a_parent_is_an_adapter(registry: Registry) -> None:
    registry.replace([pod("a", model="my-lora"), pod("b", model="my-lora")])
    registry.learn(pod("a").identity, models("base", **{"my-lora": "base"}))
    assert registry.resolve("my-lora") == ServedModel("my-lora", "my-lora", "my-lora")
    assert served_by(registry, "my-lora") == ["a", "b"]


def test_of_several_labels_the_one_of_the_same_name_wins(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.replace([pod("a", model="aaa"), pod("b", model="base")])
    registry.learn(pod("a").identity, models("base"))
    with caplog.at_level(logging.WARNING):
        assert registry.resolve("base") == ServedModel("base", "base", None)
    assert served_by(registry, "base") == ["b"]
    assert "'base'" in caplog.text


def test_else_the_first_label_by_sort_order_wins_and_it_is_told_once(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.replace([pod("a", model="m2"), pod("b", model="m1")])
    registry.learn(pod("a").identity, models("base"))
    registry.learn(pod("b").identity, models("base"))
    assert registry.resolve("base") == ServedModel("base", "m1", None)
    registry.upsert(pod("c", model="m3"))
    assert registry.resolve("base") == ServedModel("base", "m1", None)
    assert caplog.text.count("'base'") == 1


def test_an_unready_pod_is_no_candidate_but_its_names_stay(registry: Registry) -> None:
    registry.upsert(pod("a", adapters=("lora",), ready=False))
    served = registry.resolve("lora")
    assert served is not None
    assert registry.candidates(served) == ()
    assert registry.has_pods(served)


def test_a_pod_given_another_model_serves_that_one(registry: Registry) -> None:
    registry.upsert(pod())
    assert registry.model_names() == ("llama",)
    registry.upsert(pod(model="qwen"))
    assert registry.model_names() == ("qwen",)
    assert served_by(registry, "qwen") == ["a"]


# -- the gauge --------------------------------------------------------------------------------


def gauge(metrics: Metrics) -> dict[tuple[str, str], float]:
    (family,) = metrics.pods.collect()
    return {(s.labels["model"], s.labels["ready"]): s.value for s in family.samples}


def test_the_gauge_follows_the_pods_and_forgets_a_model_without_any() -> None:
    metrics = Metrics()
    registry = Registry(metrics)
    registry.replace([pod("a"), pod("b", ready=False), pod("c", model="qwen")])
    assert gauge(metrics) == {
        ("llama", "true"): 1,
        ("llama", "false"): 1,
        ("qwen", "true"): 1,
        ("qwen", "false"): 0,
    }
    registry.remove("n/c")
    registry.upsert(pod("b"))
    assert gauge(metrics) == {("llama", "true"): 2, ("llama", "false"): 0}


# -- pods that an operator has taken out ------------------------------------------------------


def ready_names(registry: Registry) -> list[str]:
    served = registry.resolve("llama")
    return [one.name for one in registry.candidates(served)] if served else []


def test_a_pod_that_is_taken_out_is_no_candidate_until_it_is_put_back(
    registry: Registry, changes: list[Change]
) -> None:
    registry.replace([pod("a"), pod("b", address="10.0.0.2:8000")])
    changes.clear()
    assert registry.take_out("n/a")
    assert ready_names(registry) == ["b"]
    assert registry.taken_out() == ("n/a",)
    assert [(before and before.ready, after and after.ready) for before, after in changes] == [
        (True, False)
    ]
    assert not registry.take_out("n/a")
    assert registry.put_back("n/a")
    assert ready_names(registry) == ["a", "b"]
    assert registry.taken_out() == ()
    assert not registry.put_back("n/a")


def test_a_pod_stays_out_through_listings_changes_and_what_it_says_of_itself(
    registry: Registry,
) -> None:
    registry.replace([pod("a"), pod("b", address="10.0.0.2:8000")])
    registry.take_out("n/a")
    registry.replace([pod("a"), pod("b", address="10.0.0.2:8000")])
    assert ready_names(registry) == ["b"]
    registry.upsert(pod("a", ready=False))
    registry.upsert(pod("a", labels={"x": "y"}))
    assert ready_names(registry) == ["b"]
    registry.learn(pod("a").identity, models("llama"))
    assert ready_names(registry) == ["b"]
    registry.put_back("n/a")
    assert ready_names(registry) == ["a", "b"]


def test_another_pod_under_the_name_of_one_that_was_out_is_a_candidate(registry: Registry) -> None:
    registry.replace([pod("a")])
    registry.take_out("n/a")
    registry.upsert(pod("a", uid="another"))
    assert ready_names(registry) == ["a"]
    assert registry.taken_out() == ()


def test_a_pod_that_went_is_not_out_any_more(registry: Registry) -> None:
    registry.replace([pod("a")])
    registry.take_out("n/a")
    registry.replace([])
    assert registry.taken_out() == ()
    registry.replace([pod("a")])
    assert ready_names(registry) == ["a"]


def test_a_pod_that_is_not_ready_stays_so_when_it_is_put_back(registry: Registry) -> None:
    registry.replace([pod("a", ready=False)])
    registry.take_out("n/a")
    registry.put_back("n/a")
    assert ready_names(registry) == []


def test_a_pod_that_is_not_known_can_be_neither_taken_out_nor_put_back(registry: Registry) -> None:
    for move in (registry.take_out, registry.put_back):
        with pytest.raises(KeyError):
            move("n/a")


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:8000\r\nx-evil: 1",
        "10.0.0.1:8000\n",
        "10.0.0.1:8000\0",
        "10.0.0.1:8000,10.6.6.6:1",
        " 10.0.0.1:8000",
        "10.0.0.1",
        "10.0.0.1:0",
        "10.0.0.1:70000",
        "10.0.0.1:٨",
        "vllm.example:8000",
        "0.0.0.0:8000",
        "fe80::1%eth0:8000",
        "2001:db8::1:8000",
        "10.0.0.1:" + "8" * 100_000,
        "",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_a_pod_whose_address_is_no_ip_and_port_is_never_picked(
    registry: Registry, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    registry.replace([pod("a", address=address), pod("b", address="[2001:db8::1]:8000")])
    registry.replace([pod("a", address=address), pod("b", address="[2001:db8::1]:8000")])
    registry.learn(pod("a", address=address).identity, models("llama"))
    assert ready_names(registry) == ["b"]
    told = [record for record in caplog.records if "is never picked" in record.getMessage()]
    assert len(told) == 1
    assert len(told[0].getMessage()) < 1_000


def test_a_pod_that_gets_a_good_address_can_be_picked(registry: Registry) -> None:
    registry.replace([pod("a", address="nonsense")])
    registry.replace([pod("a", address="10.0.0.1:8000")])
    assert ready_names(registry) == ["a"]
