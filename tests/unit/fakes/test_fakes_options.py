"""The command line, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from aibrix_extproc.fakes.config import EngineConfig
from tests.support import free_port

COMMAND = [sys.executable, "-m", "aibrix_extproc.cli", "fake-vllm"]
FREE = ["--port", "0", "--kv-events-port", "0", "--kv-replay-port", "0"]


@contextmanager
def running(*options: str) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """The process and the line that it prints when it is ready."""
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def finished(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """A command that ends by itself."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_answers_and_stops_at_a_signal(number: signal.Signals) -> None:
    options = ["--name", "pod-1", "--lora", "a, b", "--data-parallel-size", "2"]
    with running(*FREE, *options) as (process, line):
        assert (line["name"], line["model"]) == ("pod-1", "tiny")
        assert len(set(line["event_ports"] + line["replay_ports"])) == 4
        with urllib.request.urlopen(f"http://{line['address']}/v1/models") as reply:
            names = [entry["id"] for entry in json.load(reply)["data"]]
        assert names == ["tiny", "a", "b"]
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


def test_rank_r_listens_on_the_port_plus_r() -> None:
    first = free_port()
    ports = ["--kv-events-port", str(first), "--kv-replay-port", "-1"]
    with running("--port", "0", *ports, "--data-parallel-size", "2") as (_, line):
        assert line["event_ports"] == [first, first + 1]
        assert line["replay_ports"] == []


def test_an_engine_may_send_no_events() -> None:
    with running("--port", "0", "--kv-events-port", "-1") as (_, line):
        assert line["event_ports"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--vllm-version", "latest"], "latest"),
        (["--num-blocks", "10", "--max-model-len", "4096"], "max_model_len"),
        (["--data-parallel-size", "101"], "overlap"),
        (["--data-parallel-size", "0"], "data_parallel_size"),
    ],
)
def test_options_that_cannot_be_are_told_with_exit_code_2(options: list[str], told: str) -> None:
    done = finished([*COMMAND, *options])
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_told_with_exit_code_2() -> None:
    with running(*FREE) as (_, line):
        port = line["address"].rsplit(":", 1)[1]
        command = [*COMMAND, *FREE, "--port", port]
        done = finished(command)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        command = [*COMMAND, *FREE, "--kv-events-port", str(line["event_ports"][0])]
        done = finished(command)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_the_defaults_make_an_engine() -> None:
    assert EngineConfig().model_names == ("tiny",)
    assert EngineConfig(num_blocks=11, block_size=16).model_len == 160
    assert os.sep not in EngineConfig().name
