"""Misconfigured variables and endpoints files: each is named, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.collect_environment import read_environment_file
from aibrix_extproc.doctor.findings import Area, Finding
from aibrix_extproc.errors import SettingsError
from tests.unit.doctor.doctor_rig import SYNC, told

VARIABLES: list[tuple[str, dict[str, str], set[str]]] = [
    (
        "a duration that is none",
        {"AIBRIX_EXTPROC_DECISION_TIMEOUT": "soon"},
        {"variable-bad-value"},
    ),
    (
        "a flag in quotes, as some .env files have it",
        {"AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": '"true"'},
        {"variable-bad-value"},
    ),
    ("a port that is none", {"AIBRIX_KV_EVENT_PORT": "tcp://*:5557"}, {"variable-bad-value"}),
    ("a strategy of AIBrix's", {"ROUTING_ALGORITHM": "least-latency"}, {"variable-bad-value"}),
    (
        "a tokenizer endpoint without its scheme",
        {**SYNC, "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": "vllm:8000"},
        {"variable-bad-value"},
    ),
    (
        "event sync without the tokenizer",
        {"AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true"},
        {"sync-without-tokenizer"},
    ),
    (
        "a letter left out",
        {"AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLE": "true"},
        {"variable-misspelt"},
    ),
    ("a misspelt prefix", {"AIBRX_EXTPROC_MAX_STREAMS": "5"}, {"variable-misspelt"}),
    ("lower-case", {"aibrix_kv_event_port": "5557"}, {"variable-misspelt"}),
    ("an older name of AIBrix's", {"AIBRIX_USE_REMOTE_TOKENIZER": "true"}, {"variable-misspelt"}),
    ("a port in the plural", {"AIBRIX_KV_EVENTS_PORT": "5557"}, {"variable-misspelt"}),
    ("a misspelt strategy", {"ROUTING_ALGORITM": "random"}, {"variable-misspelt"}),
    (
        "a variable of AIBrix's that has no effect here",
        {"AIBRIX_PREFIX_CACHE_BLOCK_SIZE": "128"},
        {"variable-ignored"},
    ),
    (
        "a load gate of AIBrix's",
        {"AIBRIX_PREFIX_CACHE_LOAD_IMBALANCE_FACTOR": "2"},
        {"variable-ignored"},
    ),
    ("Redis", {"REDIS_HOST": "redis"}, {"variable-ignored"}),
    (
        "sessions of clients that are not trusted",
        {
            "ROUTING_ALGORITHM": "session-affinity",
            "AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS": "false",
        },
        {"strategy-lacks-input"},
    ),
    (
        "the use of KV caches, which nobody is asked for",
        {"ROUTING_ALGORITHM": "least-kv-cache", "AIBRIX_EXTPROC_KV_USAGE_INTERVAL": "0"},
        {"strategy-lacks-input"},
    ),
    ("a variable of another plugin", {"AIBRIX_CONSOLE_PORT_NUMBER": "x"}, {"variable-unknown"}),
    (
        "a certificate without its key",
        {"AIBRIX_EXTPROC_GRPC_TLS_CERT": "/tls.crt"},
        {"variables-contradict"},
    ),
    (
        "half of CURVE",
        {"AIBRIX_KV_CURVE_SERVER_KEY_FILE": "/server.key"},
        {"variables-contradict"},
    ),
    (
        "an endpoint of a tokenizer that is off",
        {"AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT": "http://t:1"},
        {"tokenizer-endpoint-unused"},
    ),
    (
        "a strategy that looks at no events",
        {**SYNC, "ROUTING_ALGORITHM": "random"},
        {"routing-ignores-events"},
    ),
    (
        "one port for events and replays",
        {"AIBRIX_KV_REPLAY_PORT": "5557"},
        {"default-ports-equal"},
    ),
    (
        "one port for gRPC and health",
        {"AIBRIX_EXTPROC_ADMIN_ADDRESS": ":50052"},
        {"addresses-collide"},
    ),
    (
        "a body above all bodies",
        {"AIBRIX_EXTPROC_MAX_INFLIGHT_BYTES": "1MiB"},
        {"limits-body-inflight"},
    ),
    ("a queue below a message", {"AIBRIX_KV_QUEUE_BYTES": "1MiB"}, {"limits-queue-message"}),
    (
        "a tokenizer call shorter than a decision",
        {"AIBRIX_EXTPROC_TOKENIZER_TIMEOUT": "200ms"},
        {"timeouts-do-not-fit"},
    ),
    (
        "stale before it is asked",
        {"AIBRIX_KV_STALE_AFTER": "5s"},
        {"timeouts-do-not-fit"},
    ),
    (
        "lost before a dead connection is noticed",
        {"AIBRIX_KV_LOST_AFTER": "1s"},
        {"timeouts-do-not-fit"},
    ),
    (
        "a watchdog faster than a decision",
        {"AIBRIX_EXTPROC_WATCHDOG_TIMEOUT": "500ms"},
        {"timeouts-do-not-fit"},
    ),
    ("a namespace beside a file", {"AIBRIX_EXTPROC_NAMESPACE": "llm"}, {"namespace-unused"}),
]

POD: dict[str, Any] = {"name": "a", "model": "m", "address": "127.0.0.1:1"}
FILES: list[tuple[str, Any, set[str]]] = [
    ("no file", None, {"endpoints-file"}),
    ("no list", "pods", {"endpoints-file"}),
    ("a host's name", [{**POD, "address": "vllm-0:8000"}], {"endpoints-file"}),
    ("a misspelt field", [{**POD, "kv_event": True}], {"endpoints-file"}),
    ("no pod", [], {"pods-none"}),
    ("one address twice", [POD, {**POD, "name": "b"}], {"pods-share-address"}),
    (
        "ports that collide over ranks",
        [{**POD, "ranks": 2, "kv_events": {"port": 5557, "replay_port": 5558}}],
        {"ports-collide"},
    ),
    (
        "a pod that is not ready",
        [POD, {**POD, "name": "b", "address": "127.0.0.1:2", "ready": False}],
        {"pod-unready"},
    ),
    ("none is ready", [{**POD, "ready": False}], {"pod-unready", "pods-none-ready"}),
    ("events that nobody reads", [{**POD, "kv_events": True}], {"sync-off"}),
]


async def examine(folder: Path, environment: dict[str, str], pods: Any) -> list[Finding]:
    path = folder / "pods.yaml"
    if pods is not None:
        path.write_text(yaml.safe_dump({"pods": pods}))
    found = {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path), **environment}
    return run_checks(await collect(Asked(timeout_s=0.2, listen_s=0.05), found))


def of(area: Area, findings: list[Finding]) -> set[str]:
    return set(told([f for f in findings if f.area is area]))


def ids(cases: list[Any]) -> list[str]:
    return [case[0] for case in cases]


@pytest.mark.parametrize(("what", "environment", "codes"), VARIABLES, ids=ids(VARIABLES))
async def test_each_is_named(
    what: str, environment: dict[str, str], codes: set[str], tmp_path: Path
) -> None:
    assert of(Area.VARIABLES, await examine(tmp_path, environment, [POD])) == codes


@pytest.mark.parametrize(("what", "pods", "codes"), FILES, ids=ids(FILES))
async def test_each_file_is_named(what: str, pods: Any, codes: set[str], tmp_path: Path) -> None:
    assert of(Area.PODS, await examine(tmp_path, {}, pods)) == codes


async def test_the_right_name_is_told(tmp_path: Path) -> None:
    environment = {"AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLE": "true"}
    findings = await examine(tmp_path, environment, [POD])
    [misspelt] = [f for f in findings if f.code == "variable-misspelt"]
    assert "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED" in misspelt.seen


async def test_one_bad_value_hides_no_other(tmp_path: Path) -> None:
    environment = {"AIBRIX_EXTPROC_DECISION_TIMEOUT": "soon", "AIBRIX_EXTPROC_MAX_STREAMS": "-1"}
    findings = await examine(tmp_path, environment, [POD])
    assert {f.subject for f in findings if f.code == "variable-bad-value"} == set(environment)


async def test_what_kubernetes_sets_for_a_service_is_no_variable() -> None:
    environment = {
        "AIBRIX_EXTPROC_SERVICE_HOST": "10.0.0.1",
        "AIBRIX_EXTPROC_SERVICE_PORT": "50052",
        "AIBRIX_EXTPROC_PORT": "tcp://10.0.0.1:50052",
        "AIBRIX_EXTPROC_PORT_50052_TCP_ADDR": "10.0.0.1",
        "AIBRIX_REDIS_MASTER_SERVICE_PORT_REDIS": "6379",
        "PATH": "/usr/bin",
    }
    facts = await collect(Asked(envoy_dump="/nowhere"), environment)
    assert of(Area.VARIABLES, run_checks(facts)) == set()


def test_a_file_of_variables_is_read(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# the processor\nA=1\n\nexport B=x=y\n")
    assert read_environment_file(path) == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize("text", ["A", "=1", None])
def test_a_file_that_is_none_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "env"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match="--env-file"):
        read_environment_file(path)
