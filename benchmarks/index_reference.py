"""Figures of the reference index: apply, match, decoding, size. Generated data only.

    .venv/bin/python benchmarks/index_reference.py [--sources 100] [--placements 1000000]

Every figure is of one thread of this process. `apply` starts from payload bytes, one BlockStored
of `--blocks` blocks in each, as engines send them in a prefill step. Times are CPU times; a busy
machine still shows in them, so run it twice.
"""

import argparse
import random
import resource
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import msgpack
import msgspec

from aibrix_extproc.index.events import decode_batch
from aibrix_extproc.index.reference import PrefixIndex

VOCABULARY = 128_000
PROMPT_TOKENS = 32_768
REPEATS = 30
"""The best of so many is told, of decoding and of apply."""
FAMILIES = 20
"""Different prompts that all sources share, as a share of traffic would."""


def payload(
    rng: random.Random, hashes: list[int], parent: int | None, tokens: list[int], array_like: bool
) -> bytes:
    """One BlockStored, as vLLM 0.17 (arrays) or 0.32 (maps) encodes it."""
    size = len(tokens) // len(hashes)
    fields: dict[str, object] = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(hashes),
    }
    if array_like:
        return msgspec.msgpack.encode([time.time(), [list(fields.values())], 0])
    fields |= {"group_idx": 0, "kv_cache_spec_kind": "full_attention"}
    return msgspec.msgpack.encode([time.time(), [fields], 0])


def chain(
    rng: random.Random, tokens: list[int], block_size: int, blocks: int, array_like: bool
) -> Iterator[bytes]:
    """A prompt as one source announces it: `blocks` blocks per event, each after the last."""
    parent = None
    for start in range(0, len(tokens) - len(tokens) % block_size, blocks * block_size):
        part = tokens[start : start + blocks * block_size]
        hashes = [rng.getrandbits(64) for _ in range(len(part) // block_size)]
        yield payload(rng, hashes, parent, part, array_like)
        parent = hashes[-1]


def removals(payloads: Iterable[bytes]) -> list[bytes]:
    """One BlockRemoved for each block of these payloads, as many to a batch as were stored."""
    batches = []
    for stored in payloads:
        event = msgspec.msgpack.decode(stored)[1][0]
        removed = [
            {"type": "BlockRemoved", "block_hashes": [block], "medium": "GPU", "group_idx": 0}
            for block in (event["block_hashes"] if isinstance(event, dict) else event[1])
        ]
        batches.append(msgspec.msgpack.encode([time.time(), removed, 0]))
    return batches


def timed(work: Callable[[], object]) -> float:
    """CPU seconds, so that other work on the machine shows less."""
    start = time.process_time()
    work()
    return time.process_time() - start


def each(work: Callable[[bytes], object], payloads: Iterable[bytes]) -> None:
    """Call it for every payload and keep no result: keeping them costs more than decoding."""
    for one in payloads:
        work(one)


def report(label: str, figure: str) -> None:
    print(f"{label:<58} {figure:>22}")


def bench_decoders(payloads: list[bytes], blocks: int) -> None:
    count = len(payloads) * blocks
    decoders = {
        "decode_batch (msgspec, typed)": decode_batch,
        "msgspec, untyped and unchecked": msgspec.msgpack.Decoder().decode,
        "msgpack, untyped and unchecked": lambda p: msgpack.unpackb(p, strict_map_key=False),
    }
    for label, decode in decoders.items():
        best = min(timed(lambda d=decode: each(d, payloads)) for _ in range(REPEATS))
        report(f"  {label}", f"{best / count * 1e9:8.0f} ns/block")


def bench_apply(label: str, payloads: list[bytes], blocks: int) -> None:
    best = 9e9
    for _ in range(REPEATS):
        index = PrefixIndex()
        source = index.add_source("m")
        best = min(best, timed(lambda i=index, s=source: each(partial(i.apply, s), payloads)))
    report(
        f"apply {label}, {blocks} blocks/event", f"{len(payloads) * blocks / best:12,.0f} blocks/s"
    )


def bench_churn(payloads: list[bytes], blocks: int) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    for stored in payloads:
        index.apply(source, stored)
    gone = removals(payloads)
    took = timed(lambda: each(partial(index.apply, source), gone))
    report("apply, one BlockRemoved per block", f"{len(payloads) * blocks / took:12,.0f} blocks/s")


def fill(rng: random.Random, index: PrefixIndex, sources: int, placements: int) -> list[list[int]]:
    """Prompts of 32k tokens, each held by a few sources; returns the prompts."""
    prompts = [[rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(FAMILIES)]
    numbers = [index.add_source("m") for _ in range(sources)]
    placed = turn = 0
    spent = 0.0
    while placed < placements:
        source = numbers[turn % sources]
        tokens = prompts[turn % FAMILIES] if turn < 3 * FAMILIES else None
        if tokens is None:
            shared = prompts[turn % FAMILIES][: rng.randrange(0, PROMPT_TOKENS // 4)]
            tokens = shared + [rng.randrange(VOCABULARY) for _ in range(8192)]
        parts = list(chain(rng, tokens, 16, 32, False))
        spent += timed(lambda p=parts, s=source: each(partial(index.apply, s), p))
        placed += len(tokens) // 16
        turn += 1
    report(f"apply while filling, {sources} sources", f"{placed / spent:12,.0f} blocks/s")
    return prompts


def bench_match(index: PrefixIndex, prompts: list[list[int]]) -> None:
    rng = random.Random(3)
    asked = [array("I", prompt) for prompt in prompts]
    missing = array("I", [rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)])
    times = sorted(
        timed(lambda t=tokens: index.match("m", t)) for tokens in asked for _ in range(10)
    )
    report(
        "match, 32k tokens, held by a few sources: median",
        f"{times[len(times) // 2] * 1e3:8.2f} ms",
    )
    report("match, the same: 90th percentile", f"{times[len(times) * 9 // 10] * 1e3:8.2f} ms")
    times = sorted(timed(lambda: index.match("m", missing)) for _ in range(30))
    report("match, 32k tokens, held by nobody: median", f"{times[len(times) // 2] * 1e3:8.2f} ms")
    depths = index.match("m", asked[0])
    report("  sources found, deepest", f"{len(depths)}, {max(depths.values())} blocks")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--sources", type=int, default=100)
    options.add_argument("--placements", type=int, default=1_000_000)
    options.add_argument("--blocks", type=int, default=6, help="blocks per event")
    options.add_argument(
        "--memory", action="store_true", help="compare stats().bytes with the heap"
    )
    chosen = options.parse_args()
    rng = random.Random(1)

    events = 1000
    for array_like in (False, True):
        label = "arrays" if array_like else "maps"
        tokens = [rng.randrange(VOCABULARY) for _ in range(events * chosen.blocks * 16)]
        payloads = list(chain(rng, tokens, 16, chosen.blocks, array_like))
        print(f"decode {label}, block size 16:")
        bench_decoders(payloads, chosen.blocks)
        bench_apply(label, payloads, chosen.blocks)
    bench_churn(payloads, chosen.blocks)

    if chosen.memory:
        tracemalloc.start()
    index = PrefixIndex()
    prompts = fill(rng, index, chosen.sources, chosen.placements)
    stats = index.stats()
    report("placements, distinct blocks", f"{stats.placements:,}, {stats.blocks:,}")
    report("stats().bytes", f"{stats.bytes / 1e6:10.0f} MB")
    if chosen.memory:
        report("heap", f"{tracemalloc.get_traced_memory()[0] / 1e6:10.0f} MB")
        return
    bench_match(index, prompts)
    source = max(stats.per_source, key=lambda s: stats.per_source[s])
    took = timed(lambda: index.remove_source(source))
    report(f"remove_source of {stats.per_source[source]:,} placements", f"{took * 1e3:8.1f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report("process, peak", f"{peak:10.0f} MB")


if __name__ == "__main__":
    main()
