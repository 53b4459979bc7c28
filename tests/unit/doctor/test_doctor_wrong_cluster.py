"""Pods and workloads that are really misconfigured, listed by an API server over real HTTP."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.discovery.pods import (
    DATA_PARALLEL_ANNOTATION,
    KV_EVENTS_LABEL,
    LORA_ID_LABEL,
    MODEL_LABEL,
    PORT_LABEL,
)
from aibrix_extproc.doctor.check_pods import near_key
from aibrix_extproc.doctor.findings import Severity
from aibrix_extproc.doctor.kubernetes_reads import KUBERNETES_READS
from tests.fake_kube import FakeKube
from tests.unit.doctor.doctor_rig import (
    SYNC,
    engine_pod,
    examine_cluster,
    site,
    told,
    workload,
)

OLD = {"vllm_version": "0.30.0"}


def serve(**config: Any) -> list[str]:
    """An engine's arguments with this --kv-events-config, beside what is right."""
    right = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:EVENTS",
        "replay_endpoint": "tcp://*:REPLAYS",
    }
    found = {name: value for name, value in (right | config).items() if value is not ...}
    return ["vllm", "serve", "m", "--kv-events-config", json.dumps(found)]


PODS: list[tuple[str, Mapping[str, Any], set[str]]] = [
    (
        "the model's label misspelt",
        {"labels": {MODEL_LABEL: None, "model.aibrix.ai/nmae": "tiny"}},
        {"label-key-near"},
    ),
    (
        "another prefix",
        {"labels": {MODEL_LABEL: None, "models.aibrix.ai/name": "tiny"}},
        {"label-key-near"},
    ),
    (
        "the events' label misspelt",
        {"labels": {KV_EVENTS_LABEL: None, "model.aibrix.ai/kv-event-enabled": "true"}},
        {"label-key-near", "kv-events-label-missing"},
    ),
    (
        "True, as Python writes it",
        {"labels": {KV_EVENTS_LABEL: "True"}},
        {"kv-events-label-value", "kv-events-label-missing"},
    ),
    (
        "yes",
        {"labels": {KV_EVENTS_LABEL: "yes"}},
        {"kv-events-label-value", "kv-events-label-missing"},
    ),
    (
        "a pod that is not marked",
        {"labels": {KV_EVENTS_LABEL: None}},
        {"kv-events-label-missing"},
    ),
    (
        "a port that is none",
        {"labels": {PORT_LABEL: "http"}},
        {"port-label", "engine-http-closed"},
    ),
    (
        "the port as an annotation",
        {"labels": {PORT_LABEL: None}, "annotations": {PORT_LABEL: "8000"}},
        {"label-as-annotation", "engine-http-closed"},
    ),
    (
        "ranks as a label",
        {"labels": {DATA_PARALLEL_ANNOTATION: "2"}},
        {"label-as-annotation"},
    ),
    (
        "ranks in words",
        {"annotations": {DATA_PARALLEL_ANNOTATION: "two"}},
        {"data-parallel-annotation"},
    ),
    ("an adapter by name", {"labels": {LORA_ID_LABEL: "sql"}}, {"lora-id-label"}),
    (
        "a port's name misspelt",
        {"ports": {"kv-events": None, "kv-event": 5557}},
        {"port-name-near", "event-port-closed"},
    ),
    ("a pod that is not ready", {"ready": False}, {"pod-unready"}),
    ("a pod on its way out", {"deleting": True}, {"pod-unready"}),
    (
        "AIBrix's flags, which vLLM does not have",
        {"args": ["vllm", "serve", "m", "--enable-kv-cache-events"]},
        {"engine-flags"},
    ),
    (
        "AIBrix's flags in a shell",
        {"args": ["sh", "-c", "vllm serve m --kv-events-publisher=zmq --port 8000"]},
        {"engine-flags"},
    ),
    ("no flag at all", {"args": ["vllm", "serve", "m"]}, {"engine-events-config"}),
    (
        "events switched off",
        {"args": serve(enable_kv_cache_events=False)},
        {"engine-events-config"},
    ),
    (
        "events not switched on",
        {"args": serve(enable_kv_cache_events=...)},
        {"engine-events-config"},
    ),
    ("no publisher", {"args": serve(publisher="null")}, {"engine-events-config"}),
    (
        "an endpoint that vLLM connects to in place of binding it",
        {"args": serve(endpoint="tcp://0.0.0.0:EVENTS")},
        {"engine-events-config"},
    ),
    (
        "an endpoint of the loopback",
        {"args": serve(endpoint="tcp://127.0.0.1:EVENTS")},
        {"engine-events-config"},
    ),
    (
        "a config that is no JSON",
        {"args": ["vllm", "serve", "m", "--kv-events-config={enable: true}"]},
        {"engine-events-config"},
    ),
    ("other ports", {"args": serve(endpoint="tcp://*:5999")}, {"engine-events-port"}),
    (
        "no prefix cache",
        {"args": [*serve(), "--no-enable-prefix-caching"]},
        {"prefix-caching-flag"},
    ),
    ("right arguments", {"args": serve()}, set()),
    (
        "right arguments in a shell",
        {"args": ["sh", "-c", f"exec vllm serve m --kv-events-config '{serve()[-1]}'"]},
        set(),
    ),
]


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    fake = FakeKube().start()
    yield fake
    fake.stop()


@pytest.mark.parametrize(("what", "changes", "codes"), PODS, ids=[case[0] for case in PODS])
async def test_each_pod_is_named(
    what: str, changes: Mapping[str, Any], codes: set[str], kube: FakeKube, tmp_path: Path
) -> None:
    async with site(tmp_path, OLD, OLD) as here:
        first, second = here.engines
        ports = {"EVENTS": first.event_ports[0], "REPLAYS": first.replay_ports[0]}
        text = json.dumps(dict(changes))
        for word, port in ports.items():
            text = text.replace(word, str(port))
        kube.apply(engine_pod(first, **json.loads(text)))
        kube.apply(engine_pod(second))
        findings = await examine_cluster(kube, SYNC)
    assert set(told(findings)) == codes
    subjects = {f.subject for f in findings if f.code in codes}
    assert all("engine-0" in subject for subject in subjects)


async def test_two_pods_of_one_address_are_named(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        kube.apply(engine_pod(here.engines[0]))
        again = engine_pod(here.engines[0])
        again["metadata"] |= {"name": "engine-1", "uid": "engine-1"}
        kube.apply(again)
        assert set(told(await examine_cluster(kube, SYNC))) == {"pods-share-address"}


async def test_ports_that_collide_over_ranks_are_named(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, {**OLD, "data_parallel_size": 2}) as here:
        events = here.engines[0].event_ports[0]
        ports = {"kv-events": events, "kv-replay": events + 1}
        ranks = {DATA_PARALLEL_ANNOTATION: "2"}
        kube.apply(engine_pod(here.engines[0], ports=ports, annotations=ranks))
        findings = await examine_cluster(kube, SYNC)
    assert {"ports-collide"} <= set(told(findings))
    assert set(told(findings)) <= {"ports-collide", "replay-port-none", "event-port-closed"}


async def test_ports_past_the_last_are_named(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        ranks = {DATA_PARALLEL_ANNOTATION: "2"}
        ports = {"kv-events": 65535}
        kube.apply(engine_pod(here.engines[0], ports=ports, annotations=ranks))
        assert "port-range" in told(await examine_cluster(kube, SYNC))


async def test_an_ip_that_nobody_can_reach_is_named(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, OLD, OLD) as here:
        kube.apply(engine_pod(here.engines[0], ip="fe80::1%eth0"))
        kube.apply(engine_pod(here.engines[1]))
        assert set(told(await examine_cluster(kube, SYNC))) == {"pod-object"}


RIGHT = {MODEL_LABEL: "tiny", KV_EVENTS_LABEL: "true"}


@pytest.mark.parametrize("kind", ["deployments", "statefulsets"])
@pytest.mark.parametrize(
    "template", [{}, {MODEL_LABEL: "tiny"}], ids=["no label", "the model's alone"]
)
async def test_labels_on_the_workload_alone_are_named(
    kind: str, template: dict[str, str], kube: FakeKube, tmp_path: Path
) -> None:
    kube.workloads[kind] = [workload(RIGHT, template)]
    async with site(tmp_path, OLD) as here:
        kube.apply(engine_pod(here.engines[0]))
        findings = await examine_cluster(kube, SYNC)
    assert set(told(findings)) == {"label-on-workload"}
    assert len([f for f in findings if f.code == "label-on-workload"]) == 2 - len(template)


async def test_a_cluster_without_our_pods_is_named(kube: FakeKube) -> None:
    kube.workloads["deployments"] = [workload(RIGHT, {})]
    findings = await examine_cluster(kube, SYNC)
    assert set(told(findings)) == {"pods-none", "label-on-workload"}


async def test_an_engine_without_a_label_is_named(kube: FakeKube, tmp_path: Path) -> None:
    bare = {MODEL_LABEL: None, KV_EVENTS_LABEL: None, PORT_LABEL: None}
    async with site(tmp_path, OLD, OLD) as here:
        kube.apply(engine_pod(here.engines[0], labels=bare, args=["vllm", "serve", "m"]))
        kube.apply(engine_pod(here.engines[1]))
        assert told(await examine_cluster(kube, SYNC)) == {"label-missing": Severity.YELLOW}


async def test_only_the_namespace_is_looked_at(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        kube.apply(engine_pod(here.engines[0], namespace="llm"))
        assert told(await examine_cluster(kube, SYNC, namespace="llm")) == {}
        assert set(told(await examine_cluster(kube, SYNC, namespace="web"))) == {"pods-none"}


async def test_listing_that_is_refused_is_named(kube: FakeKube) -> None:
    kube.denied = {"pods"}
    assert set(told(await examine_cluster(kube, SYNC))) == {"kubernetes-denied"}


async def test_workloads_that_may_not_be_listed_are_skipped(kube: FakeKube, tmp_path: Path) -> None:
    kube.denied = {"deployments"}
    async with site(tmp_path, OLD) as here:
        kube.apply(engine_pod(here.engines[0]))
        findings = await examine_cluster(kube, SYNC)
    assert told(findings) == {}
    [line] = [f for f in findings if f.subject == "workloads"]
    assert (line.severity, "403" in line.seen) == (Severity.SKIPPED, True)


async def test_an_api_server_that_is_away_is_named(kube: FakeKube) -> None:
    kube.stop()
    assert set(told(await examine_cluster(kube, SYNC))) == {"kubernetes-unreachable"}
    kube.start()


async def test_nothing_is_asked_but_what_the_role_allows(kube: FakeKube, tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        kube.apply(engine_pod(here.engines[0]))
        await examine_cluster(kube, SYNC)
    allowed = {
        f"/apis/{r.api_group}/v1/{r.resource}" if r.api_group else f"/api/v1/{r.resource}"
        for r in KUBERNETES_READS
    }
    assert set(kube.paths) == allowed
    assert kube.watches == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        (MODEL_LABEL, None),
        ("model.aibrix.ai/engine", None),
        ("model.aibrix.ai/metric-port", None),
        ("model.aibrix.ai/min_replicas", None),
        ("adapter.model.aibrix.ai/enabled", None),
        ("app.kubernetes.io/name", None),
        ("orchestration.aibrix.ai/name", None),
        ("model.aibrix.ai/Name", MODEL_LABEL),
        ("model.aibrix.ai/model-name", MODEL_LABEL),
        ("model.aibrix.ai/kv-events", KV_EVENTS_LABEL),
        ("model.aibrix.ai/service-name", None),
        ("models.example.ai/name", None),
        ("prometheus.io/port", None),
        ("aibrix.ai/name", MODEL_LABEL),
        ("model.aibrx.ai/port", PORT_LABEL),
        ("model.aibrix.io/name", MODEL_LABEL),
        ("model.aibrix.ai/kv_events_enabled", KV_EVENTS_LABEL),
        ("model.aibrix.ai/kv-events-enable", KV_EVENTS_LABEL),
        ("model.aibrix.ai/lora_id", LORA_ID_LABEL),
        ("model.aibrix.ai.name", MODEL_LABEL),
        ("model.aibrix.ai/dataparallel-size", DATA_PARALLEL_ANNOTATION),
    ],
)
def test_keys_that_are_nearly_ours_are_told_from_foreign_ones(key: str, meant: str | None) -> None:
    assert near_key(key) == meant
