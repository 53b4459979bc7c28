"""The command line: exit codes, and what a user reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aibrix_extproc import __version__
from aibrix_extproc.cli import main


def serve(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AIBRIX_", "ROUTING_"))}
    pods = tmp_path / "pods.yaml"
    pods.write_text("pods: []\n")
    base = {
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(pods),
        "AIBRIX_EXTPROC_GRPC_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_ADMIN_ADDRESS": "127.0.0.1:0",
        "AIBRIX_EXTPROC_DEBUG_ADDRESS": "127.0.0.1:0",
    }
    return subprocess.run(
        [sys.executable, "-m", "aibrix_extproc.cli", "serve"],
        env=clean | base | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"AIBRIX_EXTPROC_DECISION_TIMEOUT": "soon"}, ["AIBRIX_EXTPROC_DECISION_TIMEOUT"]),
        (
            {"AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true"},
            [
                "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED",
                "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER",
            ],
        ),
        ({"ROUTING_ALGORITHM": "fastest"}, ["ROUTING_ALGORITHM", "prefix-cache-classic"]),
        (
            {"AIBRIX_EXTPROC_ENDPOINTS_FILE": "/nowhere/pods.yaml"},
            ["AIBRIX_EXTPROC_ENDPOINTS_FILE", "/nowhere/pods.yaml"],
        ),
        (
            {
                "AIBRIX_EXTPROC_GRPC_TLS_CERT": "/nowhere/tls.crt",
                "AIBRIX_EXTPROC_GRPC_TLS_KEY": "/nowhere/tls.key",
            },
            ["AIBRIX_EXTPROC_GRPC_TLS_CERT", "/nowhere/tls.crt"],
        ),
        ({"AIBRIX_EXTPROC_GRPC_TLS_CLIENT_CA": "/x.crt"}, ["AIBRIX_EXTPROC_GRPC_TLS_CERT"]),
        ({"AIBRIX_EXTPROC_GRPC_ADDRESS": "203.0.113.1:1"}, ["AIBRIX_EXTPROC_GRPC_ADDRESS"]),
        ({"AIBRIX_EXTPROC_ADMIN_ADDRESS": "203.0.113.1:1"}, ["AIBRIX_EXTPROC_ADMIN_ADDRESS"]),
        ({"AIBRIX_EXTPROC_DEBUG_ADDRESS": "203.0.113.1:1"}, ["AIBRIX_EXTPROC_DEBUG_ADDRESS"]),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_exit_code_2_and_names_the_variable(
    environment: dict[str, str], named: list[str], tmp_path: Path
) -> None:
    ended = serve(tmp_path, **environment)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    for name in named:
        assert name in ended.stderr


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", ["serve", "demo", "fake-vllm", "loadtest", "simulate", "watch"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: aibrix-extproc" in capsys.readouterr().out
