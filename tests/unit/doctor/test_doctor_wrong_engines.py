"""Engines that are really misconfigured, over real HTTP: each is named, nothing else is."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.doctor.findings import Severity
from aibrix_extproc.fakes.tokenizer import ChatPrompt, WordTokenizer
from tests.kv_publisher import KvPublisher
from tests.support import free_port
from tests.unit.doctor.doctor_rig import http_engine, site, told
from tests.unit.doctor.engines_rig import OLD, PROMETHEUS, one_pod, pages, ports


class OtherTemplate(WordTokenizer):
    """The same tokens for a text, another chat template."""

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        return [*super().encode_chat(chat), 7]


# -- HTTP -----------------------------------------------------------------------------------------

HTTP: list[tuple[str, Mapping[str, Any], set[str]]] = [
    ("a metrics port for the API", {"/v1/models": ..., "only": True}, {"engine-not-openai"}),
    ("an API key", {"/v1/models": 401}, {"engine-api-key"}),
    ("another served name", {"/v1/models": {"data": [{"id": "llama"}]}}, {"model-name-differs"}),
    ("no prefix cache", {"/metrics": PROMETHEUS.format(16, "False")}, {"prefix-caching-off"}),
    (
        "two ranks, of which one is known",
        {
            "/metrics": PROMETHEUS.format(16, "True")
            + PROMETHEUS.format(16, "True").replace('engine="0"', 'engine="1"')
        },
        {"ranks-differ"},
    ),
    (
        "one rank, of which two API servers tell",
        {"/metrics": PROMETHEUS.format(16, "True") * 2},
        set(),
    ),
    (
        "events that are off by the engine's own word",
        {"/kv_event_sources": {"0": {"enable_kv_cache_events": False}}},
        {"engine-events-off"},
    ),
    ("no tokenizer", {"/tokenize": 404}, {"tokenizer-no-answer"}),
    ("a tokenizer that answers nonsense", {"/tokenize": {"ids": []}}, {"tokenizer-no-answer"}),
    (
        "other block sizes in events than in metrics",
        {"/metrics": PROMETHEUS.format(32, "True")},
        {"block-size-differs"},
    ),
]


@pytest.mark.parametrize(("what", "changes", "codes"), HTTP, ids=[case[0] for case in HTTP])
async def test_each_answer_of_an_engine_is_named(
    what: str,
    changes: Mapping[str, Any],
    codes: set[str],
    publisher: KvPublisher,
    tmp_path: Path,
) -> None:
    found = pages(**changes)
    if "only" in changes:
        del found["/v1/models"]
    async with (
        http_engine(found) as address,
        one_pod(tmp_path, address, ports(publisher)) as here,
    ):
        assert set(told(await here.examine())) == codes


async def test_a_closed_http_port_is_named(publisher: KvPublisher, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with one_pod(tmp_path, address, ports(publisher)) as here:
        assert set(told(await here.examine())) == {"engine-http-closed"}


async def test_an_engine_that_hangs_is_named_in_time(
    publisher: KvPublisher, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        async with one_pod(tmp_path, address, ports(publisher)) as here:
            findings = await here.examine(timeout_s=0.2)
    assert set(told(findings)) == {"engine-http-unreachable"}


async def test_pods_of_one_model_with_two_block_sizes_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, {"block_size": 16}, {"block_size": 32}) as here:
        assert set(told(await here.examine())) == {"block-sizes-mixed"}


async def test_one_pod_that_is_not_marked_is_named(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        here.pods[1]["kv_events"] = False
        assert set(told(await here.examine())) == {"kv-events-label-missing"}


async def test_no_pod_that_is_marked_is_named(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for pod in here.pods:
            pod["kv_events"] = False
        assert set(told(await here.examine())) == {"kv-events-nowhere"}


async def test_ports_other_than_the_engine_names_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, {}) as here:
        here.pods[0]["kv_events"]["port"] = free_port()
        findings = await here.examine()
    assert set(told(findings)) == {"event-port-differs", "event-port-closed"}


# -- tokenizers and probes ------------------------------------------------------------------------


async def test_pods_with_two_tokenizers_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, {}, {}, tokenizers=[None, WordTokenizer(64_000)]) as here:
        assert set(told(await here.examine())) == {"tokenizers-differ"}


async def test_pods_with_two_chat_templates_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, {}, {}, tokenizers=[None, OtherTemplate()]) as here:
        assert set(told(await here.examine())) == {"chat-templates-differ"}


async def test_a_tokenizer_of_another_model_is_named_against_the_events(tmp_path: Path) -> None:
    async with site(tmp_path, {}, {}, tokenizers=[None, WordTokenizer(64_000)]) as here:
        here.environment["AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT"] = (
            f"http://{here.engines[1].address}"
        )
        del here.pods[1]
        findings = await here.examine(probe=True)
    assert set(told(findings)) == {"tokenizers-differ", "tokens-differ-from-events"}


async def test_a_tokenizer_that_does_not_know_the_model_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, {}, {"model": "other"}) as here:
        here.environment["AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT"] = (
            f"http://{here.engines[1].address}"
        )
        del here.pods[1]
        assert set(told(await here.examine())) == {"tokenizer-model-unknown"}


async def test_a_slow_tokenizer_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, {}) as here:
        here.environment["AIBRIX_EXTPROC_DECISION_TIMEOUT"] = "0.00001"
        assert told(await here.examine()) == {"tokenizer-slow": Severity.RED}


async def test_an_engine_that_refuses_the_probe_is_named(
    publisher: KvPublisher, tmp_path: Path
) -> None:
    async with (
        http_engine(pages()) as address,
        one_pod(tmp_path, address, ports(publisher)) as here,
    ):
        assert set(told(await here.examine(probe=True))) == {"probe-refused"}


async def test_events_that_are_not_delivered_are_named(
    publisher: KvPublisher, tmp_path: Path
) -> None:
    found = pages(**{"/v1/completions": {"choices": []}})
    async with http_engine(found) as address, one_pod(tmp_path, address, ports(publisher)) as here:
        findings = await here.examine(probe=True)
    assert set(told(findings)) == {"events-not-delivered"}


async def test_event_ports_of_two_pods_mixed_up_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, OLD, OLD) as here:
        first, second = here.pods
        first["kv_events"], second["kv_events"] = second["kv_events"], first["kv_events"]
        assert set(told(await here.examine(probe=True))) == {"events-of-another-pod"}


async def test_without_a_probe_no_engine_is_asked_to_compute(tmp_path: Path) -> None:
    async with site(tmp_path, {}) as here:
        await here.examine()
        assert here.engines[0].ranks[0].scheduler.counts.prompt_tokens == 0
