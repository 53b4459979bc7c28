"""The command `loadtest`, run against a fake engine of another process."""

import json
import sys
from pathlib import Path

import aiohttp

from aibrix_extproc.stack.processes import Process, Processes, free_port
from aibrix_extproc.stack.start import start_engine

COMMAND = [sys.executable, "-m", "aibrix_extproc.cli", "loadtest"]


async def loadtest(processes: Processes, *options: str) -> tuple[int, Process]:
    process = processes.spawn("loadtest", [*COMMAND, *options])
    return await process.wait(), process


async def test_it_sends_the_workload_and_writes_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with Processes() as processes:
        engine = await start_engine(processes, "engine", ["--time-scale", "0"])
        code, process = await loadtest(
            processes, "--url", engine.url, "--requests", "30", "--json", str(path)
        )
        assert code == 0, process.tail()
        shown = process.out_path.read_text()
        async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/metrics") as page:
            metrics = await page.text()
    figures = json.loads(path.read_text())
    assert figures["requests"] == 52
    assert figures["errors"] == 0
    assert figures["model"] == "tiny"
    assert 0.6 < figures["hit_ratio"] < 0.9
    assert "52/52" in shown
    assert "hit ratio" in shown
    hits = next(line for line in metrics.splitlines() if line.startswith("vllm:prefix_cache_hits"))
    assert float(hits.split()[-1]) == figures["cached_tokens"]


async def test_a_failed_request_makes_the_command_fail() -> None:
    with Processes() as processes:
        engine = await start_engine(processes, "engine")
        code, process = await loadtest(
            processes, "--url", engine.url, "--model", "other", "--requests", "1"
        )
        assert code == 1
        assert "HTTP 404" in process.out_path.read_text()


async def test_a_gateway_that_is_not_there_is_told_in_one_line() -> None:
    with Processes() as processes:
        url = f"http://127.0.0.1:{free_port()}"
        code, process = await loadtest(processes, "--url", url, "--wait", "0")
        assert code == 1
        assert process.log_path.read_text().count("\n") == 1
        assert f"{url}/v1/models" in process.log_path.read_text()


async def test_what_is_no_url_or_header_is_refused() -> None:
    with Processes() as processes:
        assert (await loadtest(processes, "--url", "localhost"))[0] == 2
        url = "http://127.0.0.1:1"
        assert (await loadtest(processes, "--url", url, "--header", "x"))[0] == 2
        assert (await loadtest(processes, "--url", url, "--requests", "0"))[0] == 2
