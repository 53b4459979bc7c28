"""Who follows many sources does so under the usual, low limit of open files."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kv_publisher import KvPublisher

SOURCES = 60
FILES = 128
"""What a source takes, some five, times SOURCES is more."""


def limited(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command with a soft limit of FILES open files."""
    command = [sys.executable, "-m", "aibrix_extproc.cli", *arguments]
    return subprocess.run(
        ["sh", "-c", f'ulimit -S -n {FILES}; exec "$@"', "sh", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_watch_subscribes_to_all_of_them() -> None:
    targets = [f"tcp://127.0.0.1:{port}" for port in range(1, SOURCES + 1)]
    ended = limited("watch", "--once", "--seconds", "0.2", *targets)
    assert f"{SOURCES} sources: {SOURCES} CONNECTING" in ended.stdout
    assert "Too many open files" not in ended.stderr


def test_doctor_listens_to_all_of_them(tmp_path: Path) -> None:
    pods = tmp_path / "pods.yaml"
    with KvPublisher(replays=False) as engine:
        events = f"{{port: {engine.port}, replay_port: null}}"
        pods.write_text(
            "pods:\n"
            + "".join(
                f"- {{name: a{n}, model: m, address: '127.0.0.1:{n}', kv_events: {events}}}\n"
                for n in range(1, SOURCES + 1)
            )
        )
        ended = limited(
            *("doctor", "--listen", "10ms"),
            AIBRIX_EXTPROC_ENDPOINTS_FILE=str(pods),
            AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED="true",
            AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER="true",
        )
    assert "event ports: subscriptions come about" in ended.stdout
