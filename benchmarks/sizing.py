"""What a processor needs by sources and events: resident memory, CPU, bytes from each engine.

    .venv/bin/python -m benchmarks.sizing [--seconds 8]

One real `serve` process follows real PUB sockets of this process. Messages are those of vLLM 0.32:
blocks of 16 tokens of a vocabulary of 128,000, hashes of 32 bytes, maps. Each block is removed
later, as in a cache that is full, so that the index keeps its size. CPU is that of the whole
processor; the publishers' is not in it. The tables are in docs/operations.md.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import msgpack
import yaml
import zmq

from aibrix_extproc.stack.processes import free_port

BLOCK_TOKENS: Final = 16
VOCABULARY: Final = 128_000
_IDLE_S: Final = 10.0
"""As long as the interval between probes."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Server:
    """A running processor."""

    pid: int
    admin: str

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found else 0.0

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def metric(self, name: str) -> float:
        """One metric, summed over its labels."""
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=10) as reply:
            page = reply.read().decode()
        rows = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
        return sum(map(float, rows))


@contextmanager
def serving(ports: Sequence[int], pods: int = 0) -> Iterator[Server]:
    """A processor that follows these event ports, with more pods that send none."""
    entries: list[dict[str, Any]] = [
        {"name": f"engine-{n}", "model": "m", "address": f"127.0.0.1:{20_000 + n}"}
        for n in range(len(ports) + pods)
    ]
    for entry, port in zip(entries, ports, strict=False):
        entry["kv_events"] = {"port": port, "replay_port": None}
    admin = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pods.yaml"
        path.write_text(yaml.safe_dump({"pods": entries}))
        environment = os.environ | {
            "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
            "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
            "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
            "AIBRIX_EXTPROC_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
            "AIBRIX_EXTPROC_ADMIN_ADDRESS": admin,
            "AIBRIX_EXTPROC_DEBUG_ADDRESS": f"127.0.0.1:{free_port()}",
            "AIBRIX_EXTPROC_LOG_LEVEL": "ERROR",
        }
        command = [sys.executable, "-m", "aibrix_extproc.cli", "serve"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            server = Server(process.pid, f"http://{admin}")
            wait_ready(server)
            yield server
        finally:
            process.kill()
            process.wait()


def wait_ready(server: Server) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.admin}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the processor did not become ready")


def idle_share(server: Server) -> float:
    """Share of a core that it takes while nothing is sent: probes and clocks."""
    time.sleep(4)  # the first probes
    begun_s = server.cpu_s()
    time.sleep(_IDLE_S)
    return (server.cpu_s() - begun_s) / _IDLE_S


class Publishers:
    """PUB sockets, each an engine of its own."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", count: int) -> None:
        self._sockets = [context.socket(zmq.PUB) for _ in range(count)]
        self.ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in self._sockets]
        self._next = [0] * count

    def send(self, source: int, payload: bytes) -> None:
        number = self._next[source]
        self._next[source] += 1
        self._sockets[source].send_multipart([b"kv", number.to_bytes(8, "big"), payload])

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(0)


def payloads(rng: random.Random, blocks: int, count: int) -> list[bytes]:
    """Batches that store so many blocks and remove those of the batch before."""
    made, before = [], list[bytes]()
    for _ in range(count):
        hashes = [rng.randbytes(32) for _ in range(blocks)]
        ids = [rng.randrange(VOCABULARY) for _ in range(blocks * BLOCK_TOKENS)]
        events: list[dict[str, Any]] = [
            {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": None,
                "token_ids": ids,
                "block_size": BLOCK_TOKENS,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
            }
        ]
        if before:
            gone = {"type": "BlockRemoved", "block_hashes": before, "medium": "GPU"}
            events.append(gone)
        made.append(msgpack.packb([time.time(), events, 0]))
        before = hashes
    return made


def cpu(sources: int, blocks: int, rate: float, seconds: float) -> None:
    """CPU of the processor while it receives `rate` batches a second, in all."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publishers = Publishers(context, sources)
    batches = payloads(random.Random(1), blocks, 500)
    with serving(publishers.ports) as server:
        idle_s = idle_share(server)
        received, begun_s, began = (
            server.metric("aibrix_kv_batches_total"),
            server.cpu_s(),
            time.monotonic(),
        )
        sent = 0
        turns = cycle(batches)
        while (now := time.monotonic()) < began + seconds:
            due = int((now - began) * rate)
            while sent < due:
                batch = next(turns)
                for source in range(sources):
                    publishers.send(source, batch)
                sent += sources
            time.sleep(0.002)
        took_s = time.monotonic() - began
        time.sleep(0.3)
        used_s = server.cpu_s() - begun_s - idle_s * (took_s + 0.3)
        arrived = server.metric("aibrix_kv_batches_total") - received
    publishers.close()
    context.term()
    size = sum(map(len, batches)) / len(batches)
    print(
        f"{sources:4} sources, {blocks:3} blocks a batch, {arrived / took_s:7.0f} batches/s: "
        f"{used_s / took_s:6.1%} of a core, {used_s / arrived * 1e6:6.1f} µs a batch, "
        f"{size:6.0f} bytes a batch, {size / blocks:5.0f} a block stored and removed; "
        f"idle {idle_s:.1%}; {sent - arrived:.0f} not received"
    )


def memory(sources: int, pods: int) -> None:
    """Resident memory at rest."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publishers = Publishers(context, sources)
    with serving(publishers.ports, pods) as server:
        idle = idle_share(server)
        print(f"{sources:4} sources, {pods:5} pods more: {server.rss_mb():.0f} MB, {idle:.1%} CPU")
    publishers.close()
    context.term()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--only", default="memory,cpu")
    options = parser.parse_args()
    if "memory" in options.only:
        for sources, pods in ((0, 0), (0, 1000), (100, 0), (400, 0)):
            memory(sources, pods)
    if "cpu" in options.only:
        for sources, blocks, rate in ((20, 1, 1000), (20, 16, 1000), (20, 1, 4000), (100, 4, 1000)):
            cpu(sources, blocks, rate, options.seconds)


if __name__ == "__main__":
    main()
