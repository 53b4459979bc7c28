"""AIBRIX_KV_INDEX_MAX_BYTES at 64 MB, and engines that would fill 1 GB.

The memory of a real server stays, and it says that it is full; what the index holds is right.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from aibrix_extproc.index import Backend
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import Server, start_server, write_endpoints
from benchmarks.fleet import Fleet, Stream
from tests.backends import BACK_ENDS, needs_core
from tests.events import batch, removed, stored
from tests.support import eventually_async

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

LIMIT_BYTES = 64_000_000
ENGINES = 50
BLOCKS_A_BATCH = 500
BLOCK_TOKENS = 4
MODEL = "m"
BLOCKS_OF_A_GIGABYTE = {Backend.CORE: 20_000_000, Backend.REFERENCE: 5_600_000}
"""By `stats().bytes`: 50 and 180 bytes for a block in one source."""
GROWTH_OF_RSS = 1.6
"""Memory of the process for each counted byte, at most; 1.0 to 1.4 of half a million blocks."""
FIXED_RSS_BYTES = 60_000_000
"""Sockets, threads and buffers of 50 streams under load, and what the allocator keeps."""


class Filler:
    """An engine that stores one long sequence after another, evicts some, and knows the truth."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.rng = random.Random(number)
        self.sequences = 0

    def prompt(self, sequence: int) -> list[int]:
        return [self.number, sequence, *([7] * (BLOCKS_A_BATCH * BLOCK_TOKENS - 2))]

    @staticmethod
    def depth(sequence: int) -> int:
        """Blocks of it that the engine holds: of each tenth it has evicted half."""
        return BLOCKS_A_BATCH // 2 if sequence % 10 == 0 else BLOCKS_A_BATCH

    def batches(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            self.sequences += 1
            hashes = [self.rng.getrandbits(63) for _ in range(BLOCKS_A_BATCH)]
            events = [stored(hashes, self.prompt(self.sequences), block_size=BLOCK_TOKENS)]
            if gone := hashes[self.depth(self.sequences) :]:
                events.append(removed(gone))
            yield batch(*events)


def rss_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def metric(session: aiohttp.ClientSession, server: Server, name: str) -> float:
    async with session.get(f"{server.admin_url}/metrics") as reply:
        text = await reply.text()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


both = pytest.mark.parametrize(
    "backend", [pytest.param(Backend.CORE, marks=needs_core), Backend.REFERENCE]
)


@both
async def test_memory_stays_at_the_limit_and_the_server_says_so(backend: Backend) -> None:
    with Fleet(buffer_steps=100) as fleet, Processes() as processes:
        streams = [fleet.open() for _ in range(ENGINES)]
        engines = [Filler(number) for number in range(ENGINES)]
        path = processes.folder / "endpoints.yaml"
        write_endpoints(
            path,
            [
                {
                    "name": f"engine-{number:03}",
                    "model": MODEL,
                    "address": f"127.0.0.1:{number + 1}",
                    "kv_events": {
                        "port": stream.event_port,
                        "replay_port": stream.replay_port,
                    },
                }
                for number, stream in enumerate(streams)
            ],
        )
        variables = {
            "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
            "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED": "true",
            "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER": "true",
            "AIBRIX_KV_INDEX_BACKEND": backend,
            "AIBRIX_KV_INDEX_MAX_BYTES": str(LIMIT_BYTES),
        }
        async with aiohttp.ClientSession() as session:
            server = await start_server(processes, session, variables)
            empty = rss_bytes(server)
            rounds = BLOCKS_OF_A_GIGABYTE[backend] // ENGINES // BLOCKS_A_BATCH // 10
            seen = []
            for _ in range(10):
                await publish_and_wait(session, server, fleet, streams, engines, rounds)
                assert await metric(session, server, "aibrix_kv_index_bytes") <= LIMIT_BYTES
                seen.append(rss_bytes(server))
            print(f"{backend}: RSS {empty} empty, then {seen}")
            assert seen[-1] - empty <= GROWTH_OF_RSS * LIMIT_BYTES + FIXED_RSS_BYTES
            # The limit is reached within the first tenth; from the second on nothing grows.
            assert seen[-1] <= 1.05 * seen[1]
            assert await metric(session, server, "aibrix_kv_index_full_sources") == ENGINES
            async with session.get(f"{server.debug_url}/debug/sources") as reply:
                sources = await reply.json()
            assert {(one["state"], one["full"]) for one in sources} == {("PARTIAL", True)}


async def publish_and_wait(
    session: aiohttp.ClientSession,
    server: Server,
    fleet: Fleet,
    streams: list[Stream],
    engines: list[Filler],
    rounds: int,
) -> None:
    """So many batches of each engine, a few at a time, each applied before the next come."""
    done = 0
    while done < rounds:
        count = min(5, rounds - done)
        done += count
        for stream, engine in zip(streams, engines, strict=True):
            fleet.publish(stream, *engine.batches(count))

        async def applied() -> bool:
            async with session.get(f"{server.debug_url}/debug/sources") as reply:
                sequences = [one["sequence"] for one in await reply.json()]
            return sequences == [stream.sequence - 1 for stream in streams]

        await eventually_async(applied, timeout_s=60)


@both
def test_what_is_held_is_right_though_most_was_left_out(backend: Backend) -> None:
    index = BACK_ENDS[backend](max_bytes=LIMIT_BYTES)
    engines = [Filler(number) for number in range(ENGINES)]
    sources = [index.add_source(MODEL) for _ in engines]
    for _ in range(BLOCKS_OF_A_GIGABYTE[backend] // ENGINES // BLOCKS_A_BATCH):
        for source, engine in zip(sources, engines, strict=True):
            for payload in engine.batches(1):
                index.apply(source, payload)
    stats = index.stats()
    assert 0.95 * LIMIT_BYTES < stats.bytes <= LIMIT_BYTES
    assert stats.full_sources == set(sources)
    held = 0
    for source, engine in zip(sources, engines, strict=True):
        for sequence in range(1, engine.sequences + 1):
            found = index.match(MODEL, engine.prompt(sequence))
            assert set(found) <= {source}
            assert found.get(source, 0) <= engine.depth(sequence)
            held += found.get(source, 0)
    assert held == stats.placements
