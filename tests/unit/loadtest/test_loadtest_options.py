"""The command `loadtest`, run against a fake engine of another process."""

import json
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from aibrix_extproc.cli import main
from aibrix_extproc.stack.processes import Process, Processes, free_port
from aibrix_extproc.stack.start import start_engine
from tests.support import eventually_async

COMMAND = [sys.executable, "-m", "aibrix_extproc.cli", "loadtest"]
SMALL = ("--sessions", "20", "--rate", "200", "--prefix-tokens", "100", "--no-null-run")
HIDDEN = ("--think", "0.01", "--header", "authorization: Bearer secret")


def spawn(processes: Processes, *options: str) -> Process:
    report = ("--report", str(processes.folder / "report"))
    return processes.spawn("loadtest", [*COMMAND, *options, *report])


async def test_it_asks_a_gateway_and_shows_the_figures() -> None:
    with Processes() as processes:
        engine = await start_engine(processes, "engine", ["--time-scale", "0"])
        process = spawn(processes, "multi-turn", "--url", engine.url, *SMALL, *HIDDEN)
        assert await process.wait() == 0, process.tail()
        assert "80 of 80 ended, 0 open, 0 errors" in process.log_path.read_text()
        assert "hit ratio" in process.out_path.read_text()
        found = json.loads((processes.folder / "report" / "report.json").read_text())
        assert "no null run was made" in process.out_path.read_text()
        assert (processes.folder / "report" / "report.html").is_file()
    assert found["test"]["model"] == "tiny"
    assert found["test"]["options"]["prefix_tokens"] == 100
    assert found["runs"][0]["answered"] == 80
    assert "authorization" not in json.dumps(found)


async def test_a_file_of_requests_is_sent_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"time": 0.0, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3},
        {"time": 0.1, "prompt": "Once upon", "max_tokens": 2, "session": "tale"},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Processes() as processes:
        engine = await start_engine(processes, "engine", ["--time-scale", "0"])
        process = spawn(processes, "replay", str(path), "--url", engine.url, "--no-null-run")
        assert await process.wait() == 0, process.tail()
        assert "2 of 2 ended, 0 open, 0 errors" in process.log_path.read_text()


async def test_a_failed_request_makes_the_command_fail() -> None:
    with Processes() as processes:
        engine = await start_engine(processes, "engine")
        process = spawn(processes, "unique", "--url", engine.url, "--model", "other", *SMALL)
        assert await process.wait() == 1
        assert "HTTP 404" in process.out_path.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_reports_what_was_done_so_far_and_sigterm_just_ends(
    number: signal.Signals,
) -> None:
    with Processes() as processes:
        engine = await start_engine(processes, "engine", ["--time-scale", "0"])
        rows = [{"time": n, "prompt": "Once", "max_tokens": 1} for n in (0, 600)]
        path = processes.folder / "requests.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        process = spawn(processes, "replay", str(path), "--url", engine.url)
        answered = f"{engine.url}/debug/requests"
        await eventually_async(lambda: seen(answered))
        process.signal(number)
        assert await process.wait() == 130, process.tail()
        written = (processes.folder / "report" / "report.json").exists()
        assert written == (number is signal.SIGINT)
        if not written:
            return
        assert "interrupted: the report is of what was done so far" in process.log_path.read_text()
        assert "1 of 2 ended" in process.log_path.read_text()
        assert "TTFT" in process.out_path.read_text()


async def seen(url: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        found = (await reply.json())["requests"]
        return any(request["finish"][0] is not None for request in found)


async def test_a_gateway_that_is_not_there_is_told_in_one_line() -> None:
    with Processes() as processes:
        url = f"http://127.0.0.1:{free_port()}"
        process = spawn(processes, "unique", "--url", url, "--wait", "0")
        assert await process.wait() == 1
        assert process.log_path.read_text().count("\n") == 1
        assert f"{url}/v1/models" in process.log_path.read_text()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["unique", "--url", "localhost"], "localhost is no URL"),
        (["unique", "--url", "http://h:1", "--header", "x"], "is not NAME:VALUE"),
        (["unique", "--url", "http://h:1", "--engine-metrics", "x"], "is not POD=URL"),
        (["unique", "--header", "a: b"], "--header goes with --url"),
        (["unique", "--strategy", "best"], "choose from"),
        (["unique", "--num-blocks", "70"], "1232 tokens with its answer"),
        (["unique", "--envoy", "/no/such"], "make setup"),
        (["unique", "--duration", "1e-6"], "no session begins"),
        (["unique", "--report", "/proc/no"], "--report /proc/no"),
        (["replay"], "loadtest replay PATH"),
        (["replay", "no-such-file"], "no-such-file"),
    ],
)
def test_what_cannot_be_is_told_with_exit_code_2(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", *command]) == 2
    assert told in capsys.readouterr().err
