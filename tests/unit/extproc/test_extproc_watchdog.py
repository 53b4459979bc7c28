"""The watchdog in a process of its own: what ends it, with which code, and what it says."""

import asyncio
import signal
import subprocess
import sys
import threading
import time

import pytest

from aibrix_extproc.extproc.watchdog import EXIT_CODE, Watchdog
from aibrix_extproc.metrics import Metrics
from tests.support import eventually, eventually_async

PROGRAM = """
import asyncio, logging, re, sys, time
from aibrix_extproc.extproc.watchdog import Watchdog
from aibrix_extproc.metrics import Metrics

logging.basicConfig()

def stall_here():
    time.sleep(60)

def hold_the_interpreter():
    re.match(r"(a+)+$", "a" * 60 + "b")

async def main(limit_s, what):
    watchdog = Watchdog(limit_s, Metrics())
    watchdog.start()
    print("started", flush=True)
    await asyncio.sleep(0.05)
    if what == "stall":
        stall_here()
    elif what == "hold":
        hold_the_interpreter()
    elif what == "close":
        watchdog.close()
        time.sleep(0.6)
    elif what == "wait":
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

asyncio.run(main(float(sys.argv[1]), sys.argv[2]))
"""


def start(limit_s: float, what: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(limit_s), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_stalled_loop_ends_the_process_and_tells_where_it_stood() -> None:
    process = start(0.3, "stall")
    _, log = process.communicate(timeout=30)
    assert process.returncode == EXIT_CODE
    assert "the event loop has stood still" in log
    assert "AIBRIX_EXTPROC_WATCHDOG_TIMEOUT" in log
    assert "in stall_here" in log


def test_a_stall_that_lets_no_python_thread_run_ends_it_too() -> None:
    process = start(0.3, "hold")
    _, log = process.communicate(timeout=30)
    assert process.returncode not in (0, None)
    assert "hold_the_interpreter" in log


def test_a_closed_watchdog_ends_nothing() -> None:
    process = start(0.2, "close")
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log


def test_a_process_that_was_frozen_goes_on() -> None:
    process = start(1.0, "wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: "\nState:\tT" in _status(process.pid))
    # Frozen for longer than the limit: there is no condition to wait for but time itself.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.3)
    process.send_signal(signal.SIGCONT)
    _, log = process.communicate(input="\n", timeout=30)
    assert process.returncode == 0, log


def _status(pid: int) -> str:
    with open(f"/proc/{pid}/status") as file:
        return file.read()


def lag_s(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("aibrix_extproc_event_loop_lag_seconds") or 0.0


@pytest.mark.parametrize("limit_s", [0, 30])
async def test_the_lag_of_the_loop_is_measured_with_and_without_a_limit(limit_s: float) -> None:
    metrics = Metrics()
    watchdog = Watchdog(limit_s, metrics, lambda _code: None)
    watchdog.start()
    try:
        loop = asyncio.get_running_loop()
        # Longer than a beat apart, so that one beat at least is late.
        loop.call_soon(time.sleep, watchdog.tick_s + 0.1)
        await eventually_async(lambda: lag_s(metrics) > 0.05)
    finally:
        watchdog.close()


async def test_zero_never_ends_anything() -> None:
    before = threading.active_count()
    watchdog = Watchdog(0, Metrics(), lambda _code: None)
    watchdog.start()
    assert threading.active_count() == before
    watchdog.close()
