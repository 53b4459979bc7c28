"""How long a restarted processor takes to know again what the engines hold: a table, and JSON.

    .venv/bin/python -m benchmarks.restart [--sources 100] [--placements 1000000] [--backend core]

Real engines' streams (workload W over ZMQ) and a real `serve` process for each line: a first start,
which knows nothing and replays all; the save; then, after a short outage with some more batches,
a start with the snapshot. The time runs from the start of the process until it says ready (each
source EXACT, PARTIAL or LOST) and, less the interpreter's own, from its first line of log.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp

from aibrix_extproc.stack.processes import Process, Processes
from aibrix_extproc.stack.start import Server, start_server, write_endpoints
from benchmarks import workload
from benchmarks.fleet import Fleet, Stream

RESULTS: Final = Path(__file__).parents[1] / "bench-results" / "restart.json"
MODEL: Final = "m"
OUTAGE_BATCHES: Final = 10
"""What each engine publishes while no processor runs."""


def fill(fleet: Fleet, sources: int, placements: int) -> tuple[list[Stream], int]:
    """Engines that have published so many blocks, one event in a batch; and how many exactly."""
    prefixes = workload.GROUPS * workload.PREFIX_BLOCKS
    sequences = -(-(placements // sources - prefixes) // workload.SUFFIX_BLOCKS)
    made = workload.Workload(sources, sequences)
    streams = [fleet.open() for _ in range(sources)]
    for source, payload in made.messages(events_per_message=1, arrays=False):
        fleet.publish(streams[source], payload)
    return streams, sources * (prefixes + sequences * workload.SUFFIX_BLOCKS)


def pods(streams: Sequence[Stream]) -> list[dict[str, Any]]:
    """Entries of an endpoints file. Nobody answers at the addresses."""
    return [
        {
            "name": f"engine-{number}",
            "model": MODEL,
            "address": f"127.0.0.1:{number + 1}",
            "kv_events": {"port": stream.event_port, "replay_port": stream.replay_port},
        }
        for number, stream in enumerate(streams)
    ]


async def started(
    processes: Processes, session: aiohttp.ClientSession, variables: dict[str, str]
) -> tuple[Server, dict[str, Any]]:
    """A processor, and how it came to what it knows."""
    begun = time.monotonic()
    server = await start_server(processes, session, variables)
    ready_s = time.monotonic() - begun
    async with session.get(f"{server.debug_url}/debug/sources") as reply:
        sources = await reply.json()
    states = [one["state"] for one in sources]
    return server, {
        "ready_s": round(ready_s, 2),
        "from_first_line_s": round(until_last_sync_s(server.process), 2),
        "states": {state: states.count(state) for state in sorted(set(states))},
        "placements": sum(one["placements"] for one in sources),
    }


def until_last_sync_s(process: Process) -> float:
    """Between the first line of the log and the last source that became EXACT or PARTIAL."""
    times = []
    for line in process.log_path.read_text().splitlines():
        stamp = re.match(r"(\d+-\d+-\d+ \d+:\d+:\d+,\d+) ", line)
        if stamp and (not times or "→ EXACT" in line or "→ PARTIAL" in line):
            times.append(datetime.strptime(stamp.group(1), "%Y-%m-%d %H:%M:%S,%f"))
    return (times[-1] - times[0]).total_seconds()


async def measure(backend: str, streams: Sequence[Stream], fleet: Fleet) -> dict[str, Any]:
    """A cold start, a save, an outage, and a warm start."""
    with Processes() as processes:
        path = processes.folder / "endpoints.yaml"
        write_endpoints(path, pods(streams))
        snapshot = processes.folder / "index.snapshot"
        variables = {
            "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
            "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
            "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
            "AIBRIX_KV_INDEX_BACKEND": backend,
            "AIBRIX_KV_SNAPSHOT_PATH": str(snapshot),
            "AIBRIX_KV_SNAPSHOT_INTERVAL": "0",
            "AIBRIX_EXTPROC_PRE_STOP_DELAY": "0",
            "AIBRIX_EXTPROC_READY_GRACE": "10m",
        }
        async with aiohttp.ClientSession() as session:
            server, cold = await started(processes, session, variables)
            begun = time.monotonic()
            server.process.terminate()
            await server.process.wait(60)
            end_s = time.monotonic() - begun
            extra = workload.payload([])
            for stream in streams:
                fleet.publish(stream, *[extra] * OUTAGE_BATCHES)
            server, warm = await started(processes, session, variables)
            server.process.terminate()
            await server.process.wait(60)
    return {
        "backend": backend,
        "cold": cold,
        "warm": warm,
        "end_s": round(end_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--placements", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=["core", "reference"], action="append")
    options = parser.parse_args()
    results = []
    with Fleet() as fleet:
        streams, placements = fill(fleet, options.sources, options.placements)
        print(f"{options.sources} engines hold {placements} blocks")
        for backend in options.backend or ["core", "reference"]:
            result = asyncio.run(measure(backend, streams, fleet))
            results.append(result)
            for kind in ("cold", "warm"):
                line = result[kind]
                print(
                    f"{backend:9} {kind}: ready {line['ready_s']} s after the process began, "
                    f"{line['from_first_line_s']} s after its first line; {line['states']}, "
                    f"{line['placements']} blocks"
                )
            print(f"{backend:9} end: {result['end_s']} s from SIGTERM, with two saves")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
