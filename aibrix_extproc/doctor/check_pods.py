"""Pods and their labels: which there are, and what is nearly right about them. Pure.

Owns these codes. What the containers were started with is for `check_manifests`.
"""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from aibrix_extproc.discovery.kube_pods import (
    EVENT_PORT_NAME,
    REPLAY_PORT_NAME,
    PodObject,
)
from aibrix_extproc.discovery.pods import (
    DATA_PARALLEL_ANNOTATION,
    KV_EVENTS_LABEL,
    LORA_ID_LABEL,
    MODEL_LABEL,
    PORT_LABEL,
    Pod,
)
from aibrix_extproc.doctor.collect_pods import DENIED, NO_CLUSTER, UNREACHABLE
from aibrix_extproc.doctor.facts import Facts, KubernetesFacts, Missing, Pods
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

FILE_BAD: Final = Code(
    "endpoints-file",
    Area.PODS,
    Severity.RED,
    "the endpoints file cannot be used, so `serve` does not start",
    "Correct the place that is named; the README has all fields.",
)
KUBERNETES_DENIED: Final = Code(
    "kubernetes-denied",
    Area.PODS,
    Severity.RED,
    "the API server refuses to list pods",
    "Give the service account get, list and watch on pods.",
)
KUBERNETES_AWAY: Final = Code(
    "kubernetes-unreachable",
    Area.PODS,
    Severity.RED,
    "the API server cannot be asked",
    "Check the kubeconfig, the network policy and the API server.",
)
NO_PODS_FROM: Final = Code(
    "kubernetes-none",
    Area.PODS,
    Severity.RED,
    "no endpoints file is set and no cluster is configured: `serve` does not start",
    "Set `AIBRIX_EXTPROC_ENDPOINTS_FILE`, run in a cluster, or set KUBECONFIG.",
)
NONE: Final = Code(
    "pods-none",
    Area.PODS,
    Severity.RED,
    "there is no pod to send requests to: every model is a 404",
    f"Label the pods in the pod template: `{MODEL_LABEL}`; or list them in the endpoints file.",
)
NONE_READY: Final = Code(
    "pods-none-ready",
    Area.PODS,
    Severity.RED,
    "no pod of a model is ready: its requests are a 503",
    "Look at the pods' readiness probes and logs.",
)
UNREADY: Final = Code(
    "pod-unready",
    Area.PODS,
    Severity.YELLOW,
    "a pod is not ready, and gets no request",
    "Look at its readiness probe and its log; nothing, where it is just starting or leaving.",
)
SHARED_ADDRESS: Final = Code(
    "pods-share-address",
    Area.PODS,
    Severity.RED,
    "two pods have one address: one engine is counted twice",
    "Give each its own address or port; with hostNetwork, one port for each engine of a node.",
)
LABEL_NEAR: Final = Code(
    "label-key-near",
    Area.PODS,
    Severity.RED,
    "a label or annotation is nearly one of ours, and so has no effect",
    "Write the key as the finding says, in the pod template.",
)
LABEL_AS_ANNOTATION: Final = Code(
    "label-as-annotation",
    Area.PODS,
    Severity.RED,
    "a label of ours is an annotation, or the other way round",
    f"Only `{DATA_PARALLEL_ANNOTATION}` is an annotation; the others are labels.",
)
EVENTS_LABEL_VALUE: Final = Code(
    "kv-events-label-value",
    Area.PODS,
    Severity.RED,
    f"`{KV_EVENTS_LABEL}` is neither `true` nor `false`, and counts as false",
    'Write "true", in quotes and lower-case.',
)
EVENTS_NOWHERE: Final = Code(
    "kv-events-nowhere",
    Area.PODS,
    Severity.RED,
    "event sync is on, and no pod of a model is marked as sending events",
    f'Label the pods in the pod template `{KV_EVENTS_LABEL}: "true"`; in the endpoints file set '
    "`kv_events`.",
)
EVENTS_LABEL_MISSING: Final = Code(
    "kv-events-label-missing",
    Area.PODS,
    Severity.YELLOW,
    "other pods of the model send events, and this one is not marked so",
    f'Label it `{KV_EVENTS_LABEL}: "true"`, or set its `kv_events` in the endpoints file.',
)
SYNC_OFF: Final = Code(
    "sync-off",
    Area.PODS,
    Severity.YELLOW,
    "pods are marked as sending events, and event sync is off: nobody reads them",
    "Set `AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED` to true.",
)
PORT_LABEL_BAD: Final = Code(
    "port-label",
    Area.PODS,
    Severity.RED,
    f"`{PORT_LABEL}` is no port: another is used in its place",
    "Write the port of the engine's HTTP API, in quotes.",
)
PORT_NAME_NEAR: Final = Code(
    "port-name-near",
    Area.PODS,
    Severity.YELLOW,
    "a container port is nearly named as ours: the settings' ports are used in its place",
    f"Name the ports `{EVENT_PORT_NAME}` and `{REPLAY_PORT_NAME}`.",
)
PORTS_COLLIDE: Final = Code(
    "ports-collide",
    Area.PODS,
    Severity.RED,
    "event ports and replay ports of a pod's ranks overlap: rank r uses port + r",
    "Keep the two further apart than there are ranks, in the engine's --kv-events-config and here.",
)
PORT_RANGE: Final = Code(
    "port-range",
    Area.PODS,
    Severity.RED,
    "the last rank's port is above 65535: events are not followed",
    "Choose lower ports.",
)
RANKS_ANNOTATION: Final = Code(
    "data-parallel-annotation",
    Area.PODS,
    Severity.RED,
    f"`{DATA_PARALLEL_ANNOTATION}` is no number of ranks, and counts as 1",
    "Write the engine's --data-parallel-size, in quotes.",
)
LORA_LABEL: Final = Code(
    "lora-id-label",
    Area.PODS,
    Severity.RED,
    f"`{LORA_ID_LABEL}` is no number, and is ignored",
    "Write the adapter's number: the engine counts from 1, in the order of loading.",
)
POD_PROBLEM: Final = Code(
    "pod-object",
    Area.PODS,
    Severity.RED,
    "something else about a pod cannot be used",
    "As the finding says.",
)

_LABELS: Final = (MODEL_LABEL, PORT_LABEL, KV_EVENTS_LABEL, LORA_ID_LABEL)
_KEYS: Final = (*_LABELS, DATA_PARALLEL_ANNOTATION)
_PREFIX: Final = MODEL_LABEL.partition("/")[0]
_NAMES: Final = {key.partition("/")[2]: key for key in _KEYS}
_OTHER_WORDS: Final = {
    "model": MODEL_LABEL,
    "model-name": MODEL_LABEL,
    "kv-events": KV_EVENTS_LABEL,
    "kv-cache-events-enabled": KV_EVENTS_LABEL,
}
_NEAR_NAME: Final = 0.75
_NEAR_PREFIX: Final = 0.7
_NEAR_FOREIGN_PREFIX: Final = 0.8
_OWNER: Final = "aibrix"
_NEAR_PORT: Final = 0.8

_PROBLEMS: Final = (
    (KV_EVENTS_LABEL, EVENTS_LABEL_VALUE),
    (PORT_LABEL, PORT_LABEL_BAD),
    (LORA_ID_LABEL, LORA_LABEL),
    (DATA_PARALLEL_ANNOTATION, RANKS_ANNOTATION),
    ("overlap", PORTS_COLLIDE),
    ("goes past", PORT_RANGE),
)
"""What stands in a problem that discovery tells → its code."""

_OF_A_FAILURE: Final = {
    "address": SHARED_ADDRESS,
    "ports": PORTS_COLLIDE,
    DENIED: KUBERNETES_DENIED,
    UNREACHABLE: KUBERNETES_AWAY,
    NO_CLUSTER: NO_PODS_FROM,
}


def listed(facts: Facts) -> Pods:
    """The pods. Raises NotLooked."""
    if isinstance(facts.pods, Missing):
        raise NotLooked(facts.pods.why)
    return facts.pods


def kubernetes(facts: Facts) -> KubernetesFacts:
    """What the API server said. Raises NotLooked."""
    found = listed(facts).kubernetes
    if found is None:
        raise NotLooked("the pods are not from Kubernetes")
    return found


def check_listing(facts: Facts) -> Iterator[Finding]:
    """Whether there are pods, and whether they are ready."""
    if isinstance(facts.pods, Missing):
        if not facts.pods.failed:
            raise NotLooked(facts.pods.why)
        code = _OF_A_FAILURE.get(facts.pods.kind, FILE_BAD)
        yield code.found("pods", facts.pods.why)
        return
    found = facts.pods
    if not found.pods:
        yield NONE.found("pods", f"{found.source} lists no pod that serves a model")
        return
    by_model: dict[str, list[Pod]] = defaultdict(list)
    for pod in found.pods:
        by_model[pod.model].append(pod)
    for model, pods in sorted(by_model.items()):
        unready = [pod for pod in pods if not pod.ready]
        if len(unready) == len(pods):
            yield NONE_READY.found(model, f"none of {len(pods)} pods of {model} is ready")
        for pod in unready:
            yield UNREADY.found(pod.key, f"{pod.key} is not ready")


def check_addresses(facts: Facts) -> Iterator[Finding]:
    """One engine behind each address."""
    keys: dict[str, list[str]] = defaultdict(list)
    for pod in listed(facts).pods:
        keys[pod.address].append(pod.key)
    for address, pods in keys.items():
        if len(pods) > 1:
            yield SHARED_ADDRESS.found(pods[0], f"{', '.join(pods)} all have {address}")


def check_events_marked(facts: Facts) -> Iterator[Finding]:
    """Who is marked as sending events, against the setting."""
    marked: dict[str, list[bool]] = defaultdict(list)
    pods = listed(facts).pods
    for pod in pods:
        marked[pod.model].append(pod.kv_events)
    if not facts.settings.kv_event_sync:
        count = sum(pod.kv_events for pod in pods)
        if count:
            yield SYNC_OFF.found(
                "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED",
                f"{count} of {len(pods)} pods are marked, and event sync is off",
            )
        return
    for model, marks in sorted(marked.items()):
        if not any(marks):
            yield EVENTS_NOWHERE.found(model, f"none of {len(marks)} pods of {model} is marked")
    for pod in pods:
        if not pod.kv_events and any(marked[pod.model]):
            yield EVENTS_LABEL_MISSING.found(pod.key, f"{pod.key} is not marked")


def check_labels(facts: Facts) -> Iterator[Finding]:
    """Labels and annotations that are nearly right, and what discovery says of pods."""
    found = kubernetes(facts)
    for obj in found.pods:
        yield from _near_keys(obj)
        yield from _swapped(obj)
        yield from _near_ports(obj)
    for key, problems in sorted(found.problems.items()):
        for problem in problems:
            code = next((code for text, code in _PROBLEMS if text in problem), POD_PROBLEM)
            yield code.found(key, problem)


def _near_keys(obj: PodObject) -> Iterator[Finding]:
    for what, pairs in (("label", obj.metadata.labels), ("annotation", obj.metadata.annotations)):
        for key in pairs or {}:
            if meant := near_key(key):
                yield LABEL_NEAR.found(obj.key, f"the {what} {key!r}: the key is {meant}")


def near_key(key: str) -> str | None:
    """The key of ours that this one nearly is; None for one of ours and for a foreign one.

    Prefix and name are compared apart: AIBrix has more labels under the same prefix
    (`model.aibrix.ai/engine`), and others have their own `…/name`.
    """
    if key in _KEYS:
        return None
    prefix, slash, name = key.lower().partition("/")
    if not slash:
        return next(iter(difflib.get_close_matches(key.lower(), _KEYS, 1, 0.85)), None)
    if prefix != _PREFIX:
        ratio = difflib.SequenceMatcher(None, prefix, _PREFIX).ratio()
        near = _NEAR_PREFIX if _OWNER in prefix else _NEAR_FOREIGN_PREFIX
        return _NAMES.get(name) if ratio >= near else None
    close = difflib.get_close_matches(name, _NAMES, n=1, cutoff=_NEAR_NAME)
    return _NAMES[close[0]] if close else _OTHER_WORDS.get(name)


def _swapped(obj: PodObject) -> Iterator[Finding]:
    labels, annotations = obj.metadata.labels or {}, obj.metadata.annotations or {}
    for key in _LABELS:
        if key in annotations and key not in labels:
            yield LABEL_AS_ANNOTATION.found(obj.key, f"{key} is an annotation; it must be a label")
    if DATA_PARALLEL_ANNOTATION in labels and DATA_PARALLEL_ANNOTATION not in annotations:
        seen = f"{DATA_PARALLEL_ANNOTATION} is a label; it must be an annotation"
        yield LABEL_AS_ANNOTATION.found(obj.key, seen)


def _near_ports(obj: PodObject) -> Iterator[Finding]:
    names = set(_port_names(obj))
    for name in sorted(names - {EVENT_PORT_NAME, REPLAY_PORT_NAME}):
        wanted = {EVENT_PORT_NAME, REPLAY_PORT_NAME} - names
        close = difflib.get_close_matches(name.lower(), wanted, n=1, cutoff=_NEAR_PORT)
        if close:
            yield PORT_NAME_NEAR.found(
                obj.key, f"the container port {name!r}: the name is {close[0]}"
            )


def _port_names(obj: PodObject) -> Iterable[str]:
    containers = (obj.spec.containers if obj.spec else None) or ()
    return (port.name for c in containers for port in c.ports or () if port.name)


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
