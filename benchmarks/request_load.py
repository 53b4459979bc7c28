"""The client of the request path: open loop, bounded, and honest about itself.

    python -m benchmarks.request_load '{"url": …, "rate": 400, "seconds": 4, …}'

Requests are due at seeded random times (exponential gaps), whatever came before; a latency runs
from the time at which a request was due. Prints one JSON object: latencies, CPU of the processes
whose ids it was given, and how late and how busy the client itself was.
"""

import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop

from benchmarks.request_prompts import Bodies

IN_FLIGHT_LIMIT: Final = 2_000
_STRAGGLERS_S: Final = 10.0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads, to the nanosecond."""
    total = 0
    for path in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((path / "schedstat").read_text().split()[0])
    return total / 1e9


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._due = 0.0
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, found, rest = self._seen.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r")[0]
        if len(rest) >= int(length or 0):
            self._seen = b""
            self._load.answered(self, self._due, head.startswith(b"HTTP/1.1 200"))

    def connection_lost(self, _error: Exception | None) -> None:
        self._load.lost(self)


class Load:
    """The requests of one run."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        where = urlsplit(options["url"])
        self._host, self._port = where.hostname, where.port
        self._bodies = Bodies(options["size_bytes"])
        self._idle: list[Connection] = []
        self._latencies: list[float] = []
        self._late: list[float] = []
        self._failed = 0
        self._open = 0
        self._number = 0
        self._due_before = 0.0

    def answered(self, connection: Connection, due: float, good: bool) -> None:
        self._open -= 1
        self._idle.append(connection)
        if due >= self._due_before:
            self._latencies.append(time.perf_counter() - due)
            self._failed += not good

    def lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        else:
            self._open -= 1
            self._failed += 1

    def request(self) -> bytes:
        """The next one: of the few that are known, or of those that nobody has seen."""
        self._number += 1
        prompts = self._options["prompts"]
        number = self._number % prompts if prompts else 1_000_000 + self._number
        body = self._bodies.body(number)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json"
            b"\r\ncontent-length: %d\r\n\r\n"
        )
        return head % len(body) + body

    async def _send(self, due: float) -> None:
        self._open += 1
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: Connection(self), self._host, self._port
            )
        connection.send(self.request(), due)

    async def run(self) -> dict[str, Any]:
        """Warm up at the same rate, then measure."""
        rng = random.Random(self._options["seed"])
        rate, warm_s = self._options["rate"], self._options["warm_s"]
        begin = time.perf_counter()
        self._due_before = begin + warm_s
        end = self._due_before + self._options["seconds"]
        before: dict[str, float] = {}
        began_at = due = begin
        sent = 0
        while due < end and self._open < IN_FLIGHT_LIMIT:
            if due >= self._due_before and not before:
                before, began_at = self._cpus(), time.perf_counter()
            wait_s = due - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if due >= self._due_before:
                self._late.append(max(0.0, time.perf_counter() - due))
                sent += 1
            await self._send(due)
            due += rng.expovariate(rate)
        gave_up = due < end
        stop_at = time.perf_counter() + _STRAGGLERS_S
        while self._open and time.perf_counter() < stop_at:  # noqa: ASYNC110 - a short end
            await asyncio.sleep(0.005)
        lasted_s = time.perf_counter() - began_at
        used = {name: value - before[name] for name, value in self._cpus().items()}
        return self._report(sent, lasted_s, used, gave_up)

    def _cpus(self) -> dict[str, float]:
        found = {name: cpu_s(pid) for name, pid in self._options["pids"].items()}
        return found | {"client": time.process_time()}

    def _report(
        self, sent: int, lasted_s: float, used: dict[str, float], gave_up: bool
    ) -> dict[str, Any]:
        times, late = sorted(self._latencies), sorted(self._late)
        unanswered = sent - len(times)
        return {
            "sent": sent,
            "failed": self._failed + unanswered,
            "p50_ms": 1e3 * times[len(times) // 2],
            "p99_ms": 1e3 * times[len(times) * 99 // 100],
            "worst_ms": 1e3 * times[-1],
            "cpu_us": {name: 1e6 * value / sent for name, value in used.items()},
            "client_late_p99_ms": 1e3 * late[len(late) * 99 // 100],
            "client_busy": used["client"] / lasted_s,
            "client_gave_up": gave_up,
        }


def main() -> None:
    options = json.loads(sys.argv[1])
    gc.disable()
    print(json.dumps(uvloop.run(Load(options).run())))


if __name__ == "__main__":
    main()
