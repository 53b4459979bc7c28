"""Memory that the index has put aside is freed, whatever comes and goes. Linux alone tells it."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc")

ROUNDS = 60
BLOCKS = 2000
SETTLED_BYTES = 4_000_000
"""What an allocator may still add once the same has happened a few times."""


def rss_bytes() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def payloads() -> Iterator[tuple[list[int], bytes]]:
    rng = random.Random(1)
    for number in range(ROUNDS):
        hashes = [rng.getrandbits(63) for _ in range(BLOCKS)]
        yield hashes, batch(stored(hashes, [number] * (4 * BLOCKS)))


def evict(index, source: int, hashes: list[int]) -> int:  # type: ignore[no-untyped-def]
    index.apply(source, batch(removed(hashes)))
    return source


def empty(index, source: int, hashes: list[int]) -> int:  # type: ignore[no-untyped-def]
    index.apply(source, batch(cleared()))
    return source


def clear(index, source: int, hashes: list[int]) -> int:  # type: ignore[no-untyped-def]
    index.clear_source(source)
    return source


def replace(index, source: int, hashes: list[int]) -> int:  # type: ignore[no-untyped-def]
    """Another pod of another model takes its place."""
    index.remove_source(source)
    return int(index.add_source(f"model-{hashes[0]}"))


@pytest.mark.parametrize("go", [evict, empty, clear, replace])
def test_what_goes_leaves_no_memory_behind(new_index: NewIndex, go: Callable[..., int]) -> None:
    index = new_index()
    source = index.add_source("m")
    sizes = []
    for hashes, payload in payloads():
        index.apply(source, payload)
        source = go(index, source, hashes)
        sizes.append(rss_bytes())
    assert index.stats().bytes == 0
    assert max(sizes[ROUNDS // 2 :]) - max(sizes[: ROUNDS // 2]) < SETTLED_BYTES
