"""Children end with their parent, whatever ends it."""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.stack.processes import (
    Processes,
    ProcessFailed,
    child_environment,
    find_envoy,
    free_port,
)
from tests.support import eventually

SLEEPER = [sys.executable, "-c", "import time; print('{\"up\": 1}', flush=True); time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "signal.signal(signal.SIGINT, signal.SIG_IGN); print('{}', flush=True); time.sleep(600)",
]
PARENT = """
import sys, time
from aibrix_extproc.stack.processes import Processes
with Processes() as processes:
    child = processes.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Neither running nor waiting to be taken by its parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


async def test_leaving_the_context_ends_a_child_that_ignores_signals() -> None:
    with Processes() as processes:
        child = processes.spawn("deaf", DEAF)
        await child.first_line()
        assert child.exit_code is None
        folder = processes.folder
    assert child.exit_code == -signal.SIGKILL
    assert not folder.exists()


async def test_a_stopped_child_is_ended_too() -> None:
    with Processes() as processes:
        child = processes.spawn("sleeper", SLEEPER)
        await child.first_line()
        child.signal(signal.SIGSTOP)
    assert child.exit_code == -signal.SIGKILL


async def test_an_error_keeps_the_logs_and_says_where() -> None:
    processes = Processes()
    processes.spawn("sleeper", SLEEPER)
    trouble = ValueError("trouble")
    processes.__exit__(ValueError, trouble, None)
    assert str(processes.folder) in trouble.__notes__[0]
    assert list(processes.folder.iterdir())
    shutil.rmtree(processes.folder)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_child_outlives_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    environment = dict(os.environ, TMPDIR=str(tmp_path))  # a killed parent leaves its folder
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.send_signal(number)
        eventually(lambda: gone(child))


async def test_a_command_that_ends_at_once_shows_the_end_of_its_log() -> None:
    with Processes() as processes:
        child = processes.spawn(
            "broken", [sys.executable, "-c", "raise SystemExit('no such port')"]
        )
        with pytest.raises(ProcessFailed, match=r"(?s)exit code 1.*no such port"):
            await child.first_line()


async def test_a_command_that_does_not_exist_is_a_failure_not_a_hang() -> None:
    with Processes() as processes:
        child = processes.spawn("nothing", ["/no/such/command"])
        with pytest.raises(ProcessFailed, match="No such file"):
            await child.first_line()


async def test_waiting_ends_with_a_reason() -> None:
    async with aiohttp.ClientSession() as session:
        with Processes() as processes:
            child = processes.spawn("sleeper", SLEEPER)
            with pytest.raises(ProcessFailed, match="not ready at"):
                await child.ready(session, f"http://127.0.0.1:{free_port()}/", timeout_s=0.1)
            with pytest.raises(ProcessFailed, match="did not write"):
                await child.written(processes.folder / "none", timeout_s=0.1)
            with pytest.raises(ProcessFailed, match="still runs"):
                await child.wait(timeout_s=0.1)


async def test_ready_waits_through_refusals_and_other_statuses() -> None:
    statuses = iter([503, 404, 200])

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(statuses))

    app = web.Application()
    app.router.add_get("/readyz", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    async with aiohttp.ClientSession() as session:
        with Processes() as processes:
            child = processes.spawn("sleeper", SLEEPER)
            waiting = asyncio.create_task(child.ready(session, f"http://127.0.0.1:{port}/readyz"))
            await asyncio.sleep(0.05)
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await waiting
    assert next(statuses, None) is None
    await runner.cleanup()


def test_a_child_does_not_inherit_the_settings_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTING_ALGORITHM", "random")
    monkeypatch.setenv("AIBRIX_EXTPROC_NAMESPACE", "production")
    environment = child_environment({"AIBRIX_EXTPROC_LOG_LEVEL": "DEBUG"})
    assert "ROUTING_ALGORITHM" not in environment
    assert "AIBRIX_EXTPROC_NAMESPACE" not in environment
    assert environment["AIBRIX_EXTPROC_LOG_LEVEL"] == "DEBUG"
    assert environment["PATH"] == os.environ["PATH"]


def test_the_envoy_that_is_named_comes_first() -> None:
    assert find_envoy("/bin/sh") == Path("/bin/sh")


def test_an_envoy_that_is_not_there_is_told_with_the_way_to_get_one() -> None:
    with pytest.raises(SettingsError, match="make setup"):
        find_envoy("/no/such/envoy")


def test_two_who_seed_random_alike_do_not_find_the_same_ports() -> None:
    found = []
    for _ in range(2):
        random.seed(1)
        found.append([free_port() for _ in range(4)])
    assert found[0] != found[1]
