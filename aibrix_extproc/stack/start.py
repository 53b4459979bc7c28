"""Starts the parts of a gateway on free loopback ports: fake engines, the processor, Envoy.

Owns how each is started and when it counts as ready. The demo and the end-to-end tests use the
same functions. Knows no workload. What it starts belongs to the `Processes` that it is given.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from aibrix_extproc.stack.envoy_config import Config
from aibrix_extproc.stack.processes import Process, Processes, ProcessFailed, free_port

_CLI: Final = (sys.executable, "-m", "aibrix_extproc.cli")
_READY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy: where clients reach it, and its admin page."""

    process: Process
    url: str
    admin_url: str
    access_log: Path


@dataclass(frozen=True, slots=True)
class Engine:
    """A running fake engine of one rank."""

    process: Process
    name: str
    model: str
    address: str
    """`ip:port` of its API."""
    event_port: int
    replay_port: int

    @property
    def url(self) -> str:
        """The root of its API."""
        return f"http://{self.address}"

    def endpoint(self) -> dict[str, Any]:
        """Its entry in an endpoints file."""
        return {
            "name": self.name,
            "model": self.model,
            "address": self.address,
            "kv_events": {"port": self.event_port, "replay_port": self.replay_port},
        }


@dataclass(frozen=True, slots=True)
class Server:
    """A running processor: `ip:port` for Envoy, its admin and its debug pages."""

    process: Process
    grpc_address: str
    admin_url: str
    debug_url: str

    @property
    def addresses(self) -> dict[str, str]:
        """The variables that start another processor on the same ports."""
        return {
            "AIBRIX_EXTPROC_GRPC_ADDRESS": self.grpc_address,
            "AIBRIX_EXTPROC_ADMIN_ADDRESS": self.admin_url.removeprefix("http://"),
            "AIBRIX_EXTPROC_DEBUG_ADDRESS": self.debug_url.removeprefix("http://"),
        }


async def start_envoy(
    processes: Processes,
    session: aiohttp.ClientSession,
    binary: Path,
    config: Config,
    name: str = "envoy",
) -> Envoy:
    """Run Envoy with one worker and wait until its listener takes connections.

    The ports of `config` may be 0: Envoy then chooses, and is asked. Raises ProcessFailed.
    """
    config_path = processes.folder / f"{name}.json"
    config_path.write_text(json.dumps(config))
    admin_path = processes.folder / f"{name}.admin"
    admin_path.unlink(missing_ok=True)
    process = processes.spawn(
        name,
        [
            *(binary, "--config-path", config_path, "--concurrency", "1"),
            *("--disable-hot-restart", "--log-level", "warning"),
            *("--admin-address-path", admin_path),
        ],
    )
    admin_url = f"http://{await process.written(admin_path, _READY_TIMEOUT_S)}"
    await process.ready(session, f"{admin_url}/ready", _READY_TIMEOUT_S)
    url = f"http://{await _listener(process, session, admin_url)}"
    return Envoy(process, url, admin_url, process.out_path)


async def start_engine(processes: Processes, name: str, options: Sequence[str] = ()) -> Engine:
    """Run `aibrix-extproc fake-vllm` with these options on free ports. Raises ProcessFailed."""
    ports = ("--port", "0", "--kv-events-port", "0", "--kv-replay-port", "0")
    process = processes.spawn(name, [*_CLI, "fake-vllm", "--name", name, *ports, *options])
    ready = await process.first_line(_READY_TIMEOUT_S)
    return Engine(
        process=process,
        name=name,
        model=ready["model"],
        address=ready["address"],
        event_port=ready["event_ports"][0],
        replay_port=ready["replay_ports"][0],
    )


async def start_server(
    processes: Processes,
    session: aiohttp.ClientSession,
    environment: Mapping[str, str],
    name: str = "serve",
    wait_for: str = "readyz",
    arguments: Sequence[str] = (),
) -> Server:
    """Run `aibrix-extproc serve` with these variables and arguments, and wait for `/readyz` (or
    `/healthz`).

    Addresses that `environment` does not name are free ones. Raises ProcessFailed.
    """
    addresses = {
        "AIBRIX_EXTPROC_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
        "AIBRIX_EXTPROC_ADMIN_ADDRESS": f"127.0.0.1:{free_port()}",
        "AIBRIX_EXTPROC_DEBUG_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    variables = addresses | dict(environment)
    process = processes.spawn(name, [*_CLI, "serve", *arguments], variables)
    admin_url = f"http://{variables['AIBRIX_EXTPROC_ADMIN_ADDRESS']}"
    await process.ready(session, f"{admin_url}/{wait_for}", _READY_TIMEOUT_S)
    debug_url = f"http://{variables['AIBRIX_EXTPROC_DEBUG_ADDRESS']}"
    return Server(process, variables["AIBRIX_EXTPROC_GRPC_ADDRESS"], admin_url, debug_url)


def write_endpoints(path: Path, pods: Sequence[Mapping[str, Any]]) -> None:
    """Write an endpoints file so that a reader never sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(yaml.safe_dump({"pods": [dict(pod) for pod in pods]}))
    draft.replace(path)


async def _listener(process: Process, session: aiohttp.ClientSession, admin_url: str) -> str:
    """`ip:port` of the one listener, once it listens."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        async with session.get(f"{admin_url}/listeners?format=json") as reply:
            listeners = (await reply.json(content_type=None)).get("listener_statuses", [])
        if listeners:
            address = listeners[0]["local_address"]["socket_address"]
            if address.get("port_value"):
                return f"127.0.0.1:{address['port_value']}"
        process.check()
        if time.monotonic() > deadline:
            raise ProcessFailed(f"{process.name} opened no listener\n{process.tail()}")
        await asyncio.sleep(0.02)
