"""One trial of the request path: fresh processes, one run of the client, its report.

Owns the stack: engines that cost little, their event streams, Envoy with one worker, and one
processor, the real one or the empty one. Everything listens on loopback.
"""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, render, shipped
from aibrix_extproc.stack.processes import Process, Processes, find_envoy, free_port
from aibrix_extproc.stack.start import Server, start_envoy, start_server, write_endpoints
from benchmarks.request_prompts import MODEL

ROOT: Final = Path(__file__).parents[1]
_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What one trial asks of the stack."""

    processor: str
    """`ours`, `empty` or `raw`."""
    mode: str = "buffered"
    size_bytes: int = 1_000
    prompts: int = 64
    """Known prompts that come again and again; 0: each request has a new one."""
    rate: float = 400.0
    burst_s: float = 0.0
    """Events come in bursts so far apart; 0: none."""
    blocks_per_s: int = 50_000
    events_per_message: int = 16
    sources: int = 8
    warm_s: float = 2.0
    seconds: float = 5.0
    seed: int = 1


class Events:
    """The process that publishes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, trial: Trial) -> "Events":
        command = (sys.executable, "-m", "benchmarks.request_events", json.dumps(asdict(trial)))
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
        )

    async def line(self, command: str = "") -> dict[str, Any]:
        """Its next line, after a command if there is one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if command:
            self.process.stdin.write(command.encode() + b"\n")
        text = await asyncio.wait_for(self.process.stdout.readline(), _WAIT_S)
        answer: dict[str, Any] = json.loads(text)
        return answer

    async def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


async def run_trial(trial: Trial) -> dict[str, Any]:
    """Start all, warm up, measure, end all."""
    with Processes() as processes:
        events = await Events.start(trial)
        try:
            async with aiohttp.ClientSession() as session:
                return await _run(trial, processes, session, events)
        finally:
            await events.close()


async def _run(
    trial: Trial, processes: Processes, session: aiohttp.ClientSession, events: Events
) -> dict[str, Any]:
    ports = (await events.line())["ports"]
    upstream = processes.spawn("upstream", _module("request_upstream", str(trial.sources)))
    addresses = (await upstream.first_line())["addresses"]
    ours: Server | None = None
    if trial.processor == "ours":
        ours = await _serve(processes, session, addresses, ports)
        processor, grpc_address = ours.process, ours.grpc_address
        await _fill(session, ours, events)
    else:
        grpc_address = f"127.0.0.1:{free_port()}"
        flags = ["--raw"] if trial.processor == "raw" else []
        processor = processes.spawn("empty", _module("empty_ext_proc", grpc_address, *flags))
        await _printed(processor)
    config = render(
        shipped(OVERRIDE_HOST),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=[grpc_address],
        engine_addresses=addresses,
        body_mode=BodyMode(trial.mode),
    )
    envoy = await start_envoy(processes, session, find_envoy(), config)
    if trial.burst_s:
        await events.line("run")
    pids = {"ext_proc": processor.pid, "envoy": envoy.process.pid, "upstream": upstream.pid}
    report = await _load(trial, envoy.url, pids)
    if trial.burst_s:
        report["events"] = await events.line("stop")
    if ours is not None:
        report["seen"] = await _seen(session, ours)
    return report


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *arguments]


async def _serve(
    processes: Processes,
    session: aiohttp.ClientSession,
    addresses: list[str],
    ports: list[list[int]],
) -> Server:
    path = processes.folder / "endpoints.yaml"
    pods = [
        {
            "name": f"pod-{number}",
            "model": MODEL,
            "address": address,
            "kv_events": {"port": event_port, "replay_port": replay_port},
        }
        for number, (address, (event_port, replay_port)) in enumerate(
            zip(addresses, ports, strict=True)
        )
    ]
    write_endpoints(path, pods)
    variables = {
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
        "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
        "AIBRIX_EXTPROC_TOKENIZER_RENDER": "false",
        "AIBRIX_EXTPROC_LOG_LEVEL": "WARNING",
    }
    return await start_server(processes, session, variables)


async def _fill(session: aiohttp.ClientSession, ours: Server, events: Events) -> None:
    """The prompts and prefixes into the index, before anything is measured."""
    await asyncio.sleep(0.3)  # a subscription is a message of its own, and nothing tells of it
    blocks = (await events.line("store"))["blocks"]
    deadline = asyncio.get_running_loop().time() + _WAIT_S
    while (stored := (await _seen(session, ours))["blocks_stored"]) < blocks:
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeError(f"of {blocks} blocks only {stored} arrived\n{ours.process.tail()}")
        await asyncio.sleep(0.1)


async def _seen(session: aiohttp.ClientSession, ours: Server) -> dict[str, float]:
    """What the processor counted."""
    async with session.get(f"{ours.admin_url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    names = {
        "aibrix_kv_blocks_stored_total": "blocks_stored",
        'aibrix_extproc_requests_total{outcome="picked"}': "picked",
        'aibrix_extproc_tokenizer_cache_total{result="hit"}': "cache_hits",
        'aibrix_extproc_tokenizer_cache_total{result="miss"}': "cache_misses",
        f'aibrix_extproc_matched_tokens_total{{model="{MODEL}"}}': "matched_tokens",
        f'aibrix_extproc_prompt_tokens_total{{model="{MODEL}"}}': "prompt_tokens",
    }
    found = dict.fromkeys(names.values(), 0.0)
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name in names:
            found[names[name]] = float(value)
    return found


async def _printed(process: Process) -> None:
    while not process.out_path.read_bytes():
        process.check()
        await asyncio.sleep(0.02)


async def _load(trial: Trial, url: str, pids: dict[str, int]) -> dict[str, Any]:
    options = json.dumps(asdict(trial) | {"url": url, "pids": pids})
    client = await asyncio.create_subprocess_exec(
        *_module("request_load", options), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await client.communicate()
    if client.returncode:
        raise RuntimeError("the client failed")
    report: dict[str, Any] = json.loads(output)
    return report
