"""The demo itself, small; and what is left when it is interrupted: nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aibrix_extproc.demo import compare
from aibrix_extproc.demo.workload import Shape
from aibrix_extproc.loadtest.client import Outcome
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, shipped
from tests.envoy_binary import envoy_path
from tests.support import eventually

SMALL = compare.Sizes(
    shape=Shape(chat_groups=2, chats_per_group=2, chat_turns=3, documents=2),
    concurrency=4,
    prefill_us_per_token=20.0,
    decode_ms_per_token=1.0,
)


async def test_every_strategy_gets_the_same_requests_and_prefix_cache_reuses_most() -> None:
    shown: list[str] = []

    @contextmanager
    def watch(name: str, requests: int) -> Iterator[object]:
        seen: list[Outcome] = []
        yield seen.append
        assert len(seen) == requests
        shown.append(name)

    found = await compare.compare(SMALL, 3, envoy_path(), shipped(OVERRIDE_HOST), watch)  # type: ignore[arg-type]
    assert shown == ["random", "least-request", "prefix-cache", "yardstick"]
    expected = found.yardstick.clients.prompt_tokens
    for result in found.results:
        assert result.clients.errors == 0
        assert result.clients.prompt_tokens == expected
        assert sum(one.queried_tokens for one in result.engines.values()) == expected
        assert sum(one.answered for one in result.engines.values()) == SMALL.shape.requests
    assert found.of("prefix-cache").hit_ratio > found.of("random").hit_ratio
    assert found.of("prefix-cache").hit_ratio <= found.yardstick.hit_ratio
    prefix_cache = found.of("prefix-cache")
    assert prefix_cache.predicted_hit_ratio is not None
    assert prefix_cache.scheduled_hit_ratio is not None
    assert abs(prefix_cache.scheduled_hit_ratio - prefix_cache.hit_ratio) <= 0.01


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "aibrix_extproc.cli", "demo", "--report", str(report)]
    command += ["--envoy", str(envoy_path())]
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as demo:
        # Three engines, the processor and Envoy.
        children = eventually(
            lambda: found if len(found := children_of(demo.pid)) == 5 else None, timeout_s=30
        )
        demo.send_signal(number)
        demo.wait(timeout=20)
        assert demo.returncode in (130, -signal.SIGKILL)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    assert not report.exists()
    if number is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def test_a_demo_without_an_envoy_says_how_to_get_one() -> None:
    command = [sys.executable, "-m", "aibrix_extproc.cli", "demo", "--envoy", "/no/such/envoy"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "make setup" in result.stderr


def children_of(parent: int) -> list[int]:
    """The processes whose parent this is."""
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []
