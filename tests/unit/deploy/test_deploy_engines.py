"""The example engines: discovery reads what is meant, and their flags exist."""

import argparse
import json
from typing import Any

import aiohttp
import msgspec
import pytest

from aibrix_extproc.discovery.kube_pods import PodObject, to_pod
from aibrix_extproc.discovery.pods import KV_EVENTS_LABEL, MODEL_LABEL, Pod
from aibrix_extproc.fakes import options
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from tests.manifests import deployed
from tests.manifests.network import matches

Json = dict[str, Any]

OBJECTS = deployed.everything()
VLLM_FLAGS = {
    *("--served-model-name", "--port", "--enable-prefix-caching", "--block-size"),
    *("--kv-events-config", "--enable-prompt-tokens-details"),
}
"""Of `vllm serve`: docs.vllm.ai, "vllm serve" and "engine arguments", 0.10 and later."""
KV_EVENTS_FIELDS = {
    *("enable_kv_cache_events", "publisher", "endpoint", "replay_endpoint"),
    *("buffer_steps", "hwm", "max_queue_size", "topic"),
}
"""Of vLLM's KVEventsConfig: docs.vllm.ai/en/v0.10.2/api/vllm/config/kv_events.html."""


def found_by_discovery(deployment: str) -> Pod:
    """What discovery makes of a pod of this Deployment, with the processor's own settings."""
    template = deployed.find(OBJECTS, "Deployment", deployment)["spec"]["template"]
    obj = {
        "metadata": {**template["metadata"], "name": "a", "namespace": "models", "uid": "1"},
        "spec": template["spec"],
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.5",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    settings = deployed.settings(deployed.processor())
    mapped = to_pod(
        msgspec.convert(obj, PodObject), settings.kv_event_port, settings.kv_replay_port
    )
    assert mapped.problems == ()
    assert mapped.pod is not None
    return mapped.pod


@pytest.mark.parametrize(
    ("name", "model"), [("llama-3-8b", "llama-3-8b"), ("fake-engines", "tiny")]
)
def test_discovery_follows_the_events_of_its_pods(name: str, model: str) -> None:
    pod = found_by_discovery(name)
    assert (pod.model, pod.address, pod.ready, pod.kv_events) == (
        model,
        "10.0.0.5:8000",
        True,
        True,
    )
    (rank,) = pod.ranks
    assert rank.event_endpoint == "tcp://10.0.0.5:5557"
    assert rank.replay_endpoint == "tcp://10.0.0.5:5657"


@pytest.mark.parametrize("name", ["llama-3-8b", "fake-engines"])
def test_labels_stand_in_the_pod_template_and_the_selector_fits(name: str) -> None:
    deployment = deployed.find(OBJECTS, "Deployment", name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert {MODEL_LABEL, KV_EVENTS_LABEL} <= labels.keys()
    assert matches(deployment["spec"]["selector"], labels)
    assert deployment["metadata"]["namespace"] == deployed.ENGINES_NAMESPACE
    assert deployed.settings(deployed.processor()).namespace == deployed.ENGINES_NAMESPACE


def test_vllm_gets_flags_and_fields_that_exist() -> None:
    container = deployed.container(OBJECTS, "llama-3-8b")
    assert container["command"][:2] == ["vllm", "serve"]
    args = container["args"]
    flags = {arg.partition("=")[0] for arg in args if arg.startswith("--")}
    assert flags == VLLM_FLAGS
    events = json.loads(args[args.index("--kv-events-config") + 1])
    assert events.keys() <= KV_EVENTS_FIELDS
    assert events["enable_kv_cache_events"] is True
    assert events["publisher"] == "zmq"


def test_vllm_listens_on_the_ports_that_its_container_names() -> None:
    container = deployed.container(OBJECTS, "llama-3-8b")
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    args = container["args"]
    events = json.loads(args[args.index("--kv-events-config") + 1])
    assert events["endpoint"] == f"tcp://*:{ports['kv-events']}"
    assert events["replay_endpoint"] == f"tcp://*:{ports['kv-replay']}"
    assert f"--port={ports['http']}" in args
    served = next(a for a in args if a.startswith("--served-model-name="))
    assert served.partition("=")[2] == found_by_discovery("llama-3-8b").model


def fake_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    command, *rest = deployed.container(OBJECTS, "fake-engines")["args"]
    assert command == "fake-vllm"
    return parser.parse_args(rest)


def test_fake_engines_listen_on_the_ports_that_their_container_names() -> None:
    args = fake_arguments()
    ports = deployed.container(OBJECTS, "fake-engines")["ports"]
    assert {p["name"]: p["containerPort"] for p in ports} == {
        "http": args.port,
        "kv-events": args.kv_events_port,
        "kv-replay": args.kv_replay_port,
    }
    assert args.model == found_by_discovery("fake-engines").model
    assert args.host == "0.0.0.0"


async def test_probes_of_the_fake_engines_ask_a_page_that_they_have() -> None:
    container = deployed.container(OBJECTS, "fake-engines")
    paths = {p["httpGet"]["path"] for n, p in container.items() if n.endswith("Probe")}
    assert paths == {"/health"}
    async with FakeEngine(EngineConfig()) as engine, aiohttp.ClientSession() as http:
        for path in paths:
            async with http.get(f"http://{engine.address}{path}") as reply:
                assert reply.status == 200
