"""How a pod object becomes a pod."""

import json
from typing import Any

import msgspec
import pytest

from aibrix_extproc.discovery.kube_pods import Mapped, PodObject, to_pod
from aibrix_extproc.discovery.pods import Pod, Rank
from tests.fake_kube import MODEL_LABEL, kube_pod


def mapped(event_port: int = 5557, replay_port: int = 5558, **fields: Any) -> Mapped:
    obj = msgspec.json.decode(json.dumps(kube_pod(**fields)), type=PodObject)
    return to_pod(obj, event_port, replay_port)


def pod_of(**fields: Any) -> Pod:
    pod = mapped(**fields).pod
    assert pod is not None
    return pod


def labels(**more: str) -> dict[str, str]:
    return {MODEL_LABEL: "llama"} | {
        f"model.aibrix.ai/{k.replace('_', '-')}": more[k] for k in more
    }


EVENTS = {"kv_events_enabled": "true"}


def test_a_plain_pod_has_its_identity_labels_and_aibrix_default_port() -> None:
    pod = pod_of(name="a", namespace="n", uid="u", ip="10.1.2.3")
    assert pod.identity == ("n/a", "u", "10.1.2.3:8000")
    assert (pod.model, pod.ready, pod.kv_events, pod.lora_id) == ("llama", True, False, None)
    assert pod.labels == {MODEL_LABEL: "llama"}
    assert pod.ranks == (Rank(),)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_an_ended_pod_is_gone(phase: str) -> None:
    assert mapped(phase=phase) == Mapped(None)


def test_a_pod_without_an_ip_is_not_yet_one() -> None:
    assert mapped(ip=None, phase="Pending") == Mapped(None)


@pytest.mark.parametrize("part", ["spec", "status"])
def test_a_pod_without_a_spec_or_status_can_be_read(part: str) -> None:
    for gone in ({}, {part: None}):
        obj = {k: v for k, v in kube_pod().items() if k != part} | gone
        pod = to_pod(msgspec.convert(obj, PodObject), 5557, 5558).pod
        assert (pod is None) is (part == "status")


def test_a_pod_without_a_model_label_is_none() -> None:
    assert mapped(labels={"app": "x"}) == Mapped(None)


def test_an_unready_pod_stays_and_is_not_ready() -> None:
    assert pod_of(ready=False).ready is False


def test_a_pod_that_terminates_is_not_ready_though_its_condition_says_so() -> None:
    assert pod_of(ready=True, deleting=True).ready is False


def test_an_ipv6_address_is_bracketed_everywhere() -> None:
    pod = pod_of(ip="2001:DB8::0001", labels=labels(**EVENTS))
    assert pod.address == "[2001:db8::1]:8000"
    assert pod.ranks[0].event_endpoint == "tcp://[2001:db8::1]:5557"


# -- the port of the API ----------------------------------------------------------------------

PORTS = [{"containerPort": 9090, "name": "metrics"}, {"containerPort": 8080, "name": "http"}]


def test_the_port_label_rules() -> None:
    assert pod_of(labels=labels(port="9000"), ports=PORTS).address == "10.0.0.1:9000"


def test_without_the_label_a_port_named_http_or_serve_is_taken() -> None:
    assert pod_of(ports=PORTS).address == "10.0.0.1:8080"
    serve = [{"containerPort": 9090}, {"containerPort": 8081, "name": "serve-http"}]
    assert pod_of(ports=serve).address == "10.0.0.1:8081"


def test_a_port_of_another_name_is_not_guessed_to_be_the_api() -> None:
    assert pod_of(ports=[{"containerPort": 9090, "name": "metrics"}]).address == "10.0.0.1:8000"


@pytest.mark.parametrize("text", ["http", "0", "65536", "-1", "8000.0", "٣", ""])
def test_a_bad_port_label_is_told_and_the_next_rule_applies(text: str) -> None:
    result = mapped(labels=labels(port=text), ports=PORTS)
    assert result.pod is not None
    assert result.pod.address == "10.0.0.1:8080"
    assert "model.aibrix.ai/port" in result.problems[0]


# -- events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["false", "True", "1", ""])
def test_events_are_on_only_for_the_label_value_true(value: str) -> None:
    pod = pod_of(labels=labels(kv_events_enabled=value))
    assert pod.kv_events is False
    assert pod.ranks == (Rank(),)


@pytest.mark.parametrize("value", ["True", "TRUE", "yes", ""])
def test_an_event_label_that_is_neither_true_nor_false_is_told(value: str) -> None:
    (problem,) = mapped(labels=labels(kv_events_enabled=value)).problems
    assert "kv-events-enabled" in problem
    assert repr(value) in problem


def test_an_event_label_of_false_is_no_problem() -> None:
    assert mapped(labels=labels(kv_events_enabled="false")).problems == ()


def test_event_ports_are_the_settings_without_named_container_ports() -> None:
    pod = pod_of(labels=labels(**EVENTS), event_port=6000, replay_port=7000)
    assert pod.ranks == (Rank(0, "tcp://10.0.0.1:6000", "tcp://10.0.0.1:7000"),)


def test_named_container_ports_are_the_event_ports() -> None:
    named = [
        {"containerPort": 6557, "name": "kv-events"},
        {"containerPort": 6657, "name": "kv-replay"},
    ]
    pod = pod_of(labels=labels(**EVENTS), ports=named)
    assert pod.ranks == (Rank(0, "tcp://10.0.0.1:6557", "tcp://10.0.0.1:6657"),)


DP = "model.aibrix.ai/data-parallel-size"


def test_each_rank_has_the_next_ports() -> None:
    pod = pod_of(labels=labels(**EVENTS), annotations={DP: "2"}, replay_port=5657)
    assert pod.ranks == (
        Rank(0, "tcp://10.0.0.1:5557", "tcp://10.0.0.1:5657"),
        Rank(1, "tcp://10.0.0.1:5558", "tcp://10.0.0.1:5658"),
    )


def test_colliding_ranges_leave_the_replays_out_and_say_what_to_change() -> None:
    result = mapped(labels=labels(**EVENTS), annotations={DP: "2"})
    assert result.pod is not None
    assert result.pod.ranks == (
        Rank(0, "tcp://10.0.0.1:5557", None),
        Rank(1, "tcp://10.0.0.1:5558", None),
    )
    (problem,) = result.problems
    assert "5557-5558" in problem
    assert "5557 and 5657" in problem
    assert "kv-replay" in problem


def test_event_ports_past_the_last_port_are_not_followed() -> None:
    result = mapped(labels=labels(**EVENTS), annotations={DP: "2"}, event_port=65535)
    assert result.pod is not None
    assert result.pod.ranks == (Rank(0), Rank(1))
    assert "65535" in result.problems[0]


@pytest.mark.parametrize("text", ["two", "0", "-2", "100000"])
def test_a_bad_number_of_ranks_is_told_and_counts_as_one(text: str) -> None:
    result = mapped(annotations={DP: text})
    assert result.pod is not None
    assert len(result.pod.ranks) == 1
    assert DP in result.problems[0]


def test_ranks_without_events_have_no_endpoints() -> None:
    assert pod_of(annotations={DP: "2"}).ranks == (Rank(0), Rank(1))


# -- adapters ---------------------------------------------------------------------------------


def test_the_lora_id_is_a_number() -> None:
    assert pod_of(labels=labels(lora_id="3")).lora_id == 3


@pytest.mark.parametrize("text", ["x", "-1", "1.0", ""])
def test_a_bad_lora_id_is_told_and_ignored(text: str) -> None:
    result = mapped(labels=labels(lora_id=text))
    assert result.pod is not None
    assert result.pod.lora_id is None
    assert "model.aibrix.ai/lora-id" in result.problems[0]
