"""What no engine, file or terminal of good will gives: doctor says so, and does not break."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.collect_engines import cache_configs, error_text
from aibrix_extproc.doctor.facts import Answer, CacheConfig
from tests.unit.doctor.doctor_rig import SYNC, http_engine, told

ENDLESS = '{"x": ' + "[" * 100_000
"""Brackets within brackets: no reader of JSON that uses a stack gets to their end."""
PAGES: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "m"}]},
    "/metrics": 'vllm:cache_config_info{block_size="16",enable_prefix_caching="True"} 1\n',
    "/tokenize": {"tokens": [1, 2, 3]},
}


@pytest.mark.parametrize(
    ("path", "page", "codes"),
    [
        ("/v1/models", ENDLESS, {"engine-not-openai"}),
        ("/tokenize", ENDLESS, {"tokenizer-no-answer"}),
        ("/kv_event_sources", ENDLESS, set()),
        ("/metrics", 'vllm:cache_config_info{block_size="\u00b2"} 1\n', set()),
        ("/metrics", f'vllm:cache_config_info{{block_size="{"9" * 5000}"}} 1\n', set()),
        ("/metrics", 'vllm:prefix_cache_queries_total{engine="0"} NaN\n', set()),
    ],
    ids=["models", "tokens", "sources", "digits of another script", "digits", "no number"],
)
async def test_answers_of_a_hostile_engine_break_nothing(
    path: str, page: str, codes: set[str], tmp_path: Path
) -> None:
    async with http_engine(PAGES | {path: page}) as address:
        pods = tmp_path / "pods.yaml"
        pods.write_text(f"pods: [{{name: a, model: m, address: '{address}'}}]")
        environment = SYNC | {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(pods)}
        findings = run_checks(await collect(Asked(), environment))
    assert set(told(findings)) == {"kv-events-nowhere"} | codes


@pytest.mark.timeout(30)  # a backtracking expression would take hours
def test_a_label_without_an_end_costs_no_time() -> None:
    line = "vllm:cache_config_info{" + "a" * 1_000_000 + ',block_size="16"} 1\n'
    assert cache_configs(line.encode()) == (CacheConfig(16),)


def test_an_error_that_cannot_be_read_is_its_status() -> None:
    assert error_text(Answer(500, ENDLESS.encode())) == "status 500"


@pytest.mark.parametrize(
    "content",
    [b"clusters: [ {", b"\xff\xfe", b"- a\n- b\n", b"clusters: 7\nusers: x\ncontexts: y\n"],
    ids=["no YAML", "no text", "a list", "other shapes"],
)
async def test_a_kubeconfig_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(content)
    findings = run_checks(await collect(Asked(kubernetes=True, kubeconfig=str(path)), {}))
    (found,) = (finding for finding in findings if finding.code == "kubernetes-none")
    assert f"--kubeconfig: {path} cannot be used" in found.seen


def run(stdout: int, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "aibrix_extproc.cli", "doctor", *arguments],
        env=os.environ | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run(writing, "--envoy-config-dump", "envoy/override-host.yaml")
    finally:
        os.close(writing)
    assert ended.stderr == ""


def test_a_locale_that_lacks_a_letter_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("AIBRIX_EXTPROC_L\u00c4NGE=1\n")
    ended = run(subprocess.PIPE, "--env-file", str(path), PYTHONIOENCODING="ascii")
    assert ended.stderr == ""
    assert r"AIBRIX_EXTPROC_L\xc4NGE" in ended.stdout
