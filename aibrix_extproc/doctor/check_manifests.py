"""How engines were started and labelled in Kubernetes: workloads and command lines. Pure.

Owns these codes. Command lines are read as far as vLLM's flags for events go; what an engine
really does is for `check_engines` and `check_events`.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aibrix_extproc.discovery.pods import (
    KV_EVENTS_LABEL,
    LORA_ID_LABEL,
    MODEL_LABEL,
    PORT_LABEL,
    Pod,
)
from aibrix_extproc.doctor.check_pods import kubernetes, listed
from aibrix_extproc.doctor.facts import Facts, Missing
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

LABEL_ON_WORKLOAD: Final = Code(
    "label-on-workload",
    Area.PODS,
    Severity.RED,
    "a label is on a Deployment or StatefulSet and not in its pod template: no pod has it",
    "Move it to `spec.template.metadata.labels`. `kubectl label deployment` sets the wrong one.",
)
LABEL_MISSING: Final = Code(
    "label-missing",
    Area.PODS,
    Severity.YELLOW,
    "a pod runs vLLM and has no label of ours: it gets no request from here",
    f"Label it `{MODEL_LABEL}` in the pod template, if it is meant to.",
)
FLAGS: Final = Code(
    "engine-flags",
    Area.PODS,
    Severity.RED,
    "an engine is started with flags that vLLM does not have (they are in AIBrix's pages)",
    "Use one flag: --kv-events-config with a JSON object; the README has it.",
)
EVENTS_CONFIG: Final = Code(
    "engine-events-config",
    Area.PODS,
    Severity.RED,
    "by its --kv-events-config an engine that is marked as sending events sends none",
    'Write {"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", '
    '"replay_endpoint": "tcp://*:5657"}.',
)
EVENTS_PORT: Final = Code(
    "engine-events-port",
    Area.PODS,
    Severity.RED,
    "the ports of an engine's --kv-events-config are others than those that are asked here",
    "Name the container ports `kv-events` and `kv-replay`, or set `AIBRIX_KV_EVENT_PORT` and "
    "`AIBRIX_KV_REPLAY_PORT`.",
)
CACHING_FLAG: Final = Code(
    "prefix-caching-flag",
    Area.PODS,
    Severity.RED,
    "an engine is started with its prefix cache off",
    "Start it with --enable-prefix-caching.",
)

_CARRIED: Final = (MODEL_LABEL, KV_EVENTS_LABEL, PORT_LABEL, LORA_ID_LABEL)
_FLAG: Final = "--kv-events-config"
_INVENTED: Final = (
    "--enable-kv-cache-events",
    "--kv-events-publisher",
    "--kv-events-endpoint",
    "--kv-events-replay-endpoint",
    "--kv-events-buffer-steps",
)
_CACHING_OFF: Final = "--no-enable-prefix-caching"
_VLLM: Final = re.compile(r"(^|[/ ])vllm( |$|\.entrypoints)")


def check_workloads(facts: Facts) -> Iterator[Finding]:
    """Labels that do not reach the pods."""
    workloads = kubernetes(facts).workloads
    if isinstance(workloads, Missing):
        raise NotLooked(f"{workloads.why}; doctor's own role may list them")
    for workload in workloads:
        for key in _CARRIED:
            if key in workload.labels and key not in workload.template_labels:
                yield LABEL_ON_WORKLOAD.found(
                    f"{workload.kind} {workload.key}",
                    f"{key}={workload.labels[key]} is on the {workload.kind}, and not in its pod "
                    "template",
                )


def check_commands(facts: Facts) -> Iterator[Finding]:
    """What engines were started with."""
    found = kubernetes(facts)
    pods = {pod.key: pod for pod in listed(facts).pods}
    engines = () if isinstance(facts.engines, Missing) else facts.engines
    says_itself = {engine.pod.key for engine in engines if engine.engine_ranks is not None}
    for obj in found.pods:
        words = _split(found.commands.get(obj.key, ()))
        if not words:
            continue
        pod = pods.get(obj.key)
        if pod is None:
            if _runs_vllm(words) and MODEL_LABEL not in (obj.metadata.labels or {}):
                yield LABEL_MISSING.found(obj.key, f"{obj.key} runs vLLM without {MODEL_LABEL}")
            continue
        invented = [word for word in words if word.partition("=")[0] in _INVENTED]
        if invented:
            yield FLAGS.found(pod.key, f"{pod.key} has {', '.join(invented)}")
        if _CACHING_OFF in words:
            yield CACHING_FLAG.found(pod.key, f"{pod.key} has {_CACHING_OFF}")
        if pod.kv_events and not invented:
            yield from _events_config(pod, words, pod.key in says_itself)


def _split(words: Sequence[str]) -> list[str]:
    """Words, with those of a shell's `-c` taken apart."""
    found = []
    for word in words:
        if " " in word and not word.lstrip().startswith("{"):
            try:
                found += shlex.split(word, comments=True)
            except ValueError:
                found += word.split()
        else:
            found.append(word)
    return found


def _runs_vllm(words: Sequence[str]) -> bool:
    return any(_VLLM.search(word) for word in words)


def _events_config(pod: Pod, words: Sequence[str], says_itself: bool) -> Iterator[Finding]:
    """`says_itself`: by its `/kv_event_sources`, so that our idea of its ports does not count."""
    if any(word.startswith(f"{_FLAG}.") for word in words):
        return  # field by field: the engine itself is asked
    text = _value(words)
    if text is None:
        if _runs_vllm(words):
            yield EVENTS_CONFIG.found(pod.key, f"{pod.key} is marked, and has no {_FLAG}")
        return
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        yield EVENTS_CONFIG.found(pod.key, f"the {_FLAG} of {pod.key} is no JSON object")
        return
    why = _silent(config)
    if why:
        yield EVENTS_CONFIG.found(pod.key, f"the {_FLAG} of {pod.key}: {why}")
        return
    if not says_itself:
        yield from _ports(pod, config)


def _value(words: Sequence[str]) -> str | None:
    for number, word in enumerate(words):
        if word == _FLAG:
            return words[number + 1] if number + 1 < len(words) else ""
        if word.startswith(f"{_FLAG}="):
            return word.partition("=")[2]
    return None


def _silent(config: dict[str, Any]) -> str | None:
    """Why nobody can read these events. vLLM binds an endpoint with `*` or `::`, and connects to
    any other (`ZmqEventPublisher._socket_setup`)."""
    if config.get("enable_kv_cache_events") is not True:
        return "enable_kv_cache_events is not true"
    if config.get("publisher", "zmq") != "zmq":
        return f"the publisher is {config['publisher']!r}, not zmq"
    for name in ("endpoint", "replay_endpoint"):
        endpoint = config.get(name)
        if endpoint is not None and not re.match(r"tcp://.*(\*|::)", str(endpoint)):
            return f"{name} {endpoint!r} is not bound to every address: write tcp://*:PORT"
    return None


def _ports(pod: Pod, config: dict[str, Any]) -> Iterator[Finding]:
    rank = pod.ranks[0]
    for name, ours in (
        ("endpoint", rank.event_endpoint),
        ("replay_endpoint", rank.replay_endpoint),
    ):
        theirs = config.get(name) or ("tcp://*:5557" if name == "endpoint" else None)
        if theirs is None or ours is None:
            continue
        port = str(theirs).rpartition(":")[2]
        if port != ours.rpartition(":")[2]:
            yield EVENTS_PORT.found(
                pod.key, f"{name} of {pod.key} is port {port}; here {ours} is asked"
            )


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
