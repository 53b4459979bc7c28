"""Dynamo's RadixTree as its Python package offers it. Runs in the environment of the peer.

    python -m benchmarks.peers.radix_tree convert FILES DIRECTORY
    python -m benchmarks.peers.radix_tree time FILES DIRECTORY
    python -m benchmarks.peers.radix_tree memory FILES DIRECTORY

It takes one event at a time as JSON with the hashes of the blocks' tokens already in it, so that
neither msgpack nor hashing is part of its ingest, and "events per message" means nothing to it.
`convert` makes that JSON; the removals of one message become one event there, since a call for each
block would measure calls. Its own thread applies; a look-up behind the last event waits for all
before it.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from dynamo.llm import RadixTree, compute_block_hash_for_seq

from benchmarks.messages import read_messages, rss_bytes, write_messages
from benchmarks.peers.files import PROMPT_TOKENS, Files, load

BLOCK_TOKENS = 16
Event = tuple[int, bytes]


def events_of(path: str) -> Iterator[Event]:
    """(source, JSON) of each event, as the peer's `apply_event` wants it."""
    encode = msgspec.json.Encoder().encode
    number = 0
    for source, payload in read_messages(path):
        gone: list[int] = []
        for event in msgspec.msgpack.decode(payload)[1]:
            if event["type"] == "BlockRemoved":
                gone += event["block_hashes"]
                continue
            hashes = compute_block_hash_for_seq(event["token_ids"], BLOCK_TOKENS)
            pairs = zip(event["block_hashes"], hashes, strict=True)
            blocks = [{"block_hash": mine, "tokens_hash": tokens} for mine, tokens in pairs]
            data = {"stored": {"parent_hash": event["parent_block_hash"], "blocks": blocks}}
            number += 1
            yield source, encode({"event_id": number, "data": data, "dp_rank": 0})
        if gone:
            number += 1
            data = {"removed": {"block_hashes": gone}}
            yield source, encode({"event_id": number, "data": data, "dp_rank": 0})


def apply_all(tree: RadixTree, events: list[Event]) -> float:
    """CPU seconds of the process, its thread included, until everything is applied."""
    apply = tree.apply_event
    start = time.process_time()
    for source, event in events:
        apply(source, event)
    tree.find_matches([0])
    return time.process_time() - start


def median_us(work: Callable[[], object]) -> float:
    times = []
    for _ in range(101):
        start = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def matches(tree: RadixTree, files: Files) -> dict[str, float]:
    found = {}
    prompts = json.loads(Path(files.prompts).read_text())
    for tokens, prompt in zip(PROMPT_TOKENS, prompts, strict=True):
        hashes = compute_block_hash_for_seq(prompt, BLOCK_TOKENS)
        scores = tree.find_matches(hashes).scores
        assert set(scores.values()) == {tokens // BLOCK_TOKENS}, scores
        found[f"match_{tokens}_us"] = median_us(
            lambda p=prompt: tree.find_matches(compute_block_hash_for_seq(p, BLOCK_TOKENS)).scores
        )
        found[f"match_{tokens}_hashed_us"] = median_us(lambda h=hashes: tree.find_matches(h).scores)
    return found


def convert(files: Files, directory: Path) -> dict[str, float]:
    write_messages(directory / "stored.json", events_of(files.stored["16"]))
    write_messages(directory / "chains.json", events_of(files.chains))
    write_messages(directory / "removed.json", events_of(files.removed))
    return {}


def times(files: Files, directory: Path) -> dict[str, float]:
    parts = ("stored.json", "chains.json", "removed.json")
    stored, chains, removed = (list(read_messages(str(directory / part))) for part in parts)
    tree = RadixTree()
    found = {"ingest_ns": apply_all(tree, stored) / files.blocks * 1e9}
    apply_all(tree, chains)
    found |= matches(tree, files)
    found["removal_ns"] = apply_all(tree, removed) / files.blocks * 1e9
    return found


def memory(files: Files, directory: Path) -> dict[str, float]:
    """Growth of RSS; events are read one by one, and nothing else is kept."""
    tree = RadixTree()
    before = rss_bytes()
    for source, event in read_messages(str(directory / "stored.json")):
        tree.apply_event(source, event)
    tree.find_matches([0])
    return {"memory_bytes": (rss_bytes() - before) / files.blocks}


def main() -> None:
    what, files, directory = sys.argv[1], load(sys.argv[2]), Path(sys.argv[3])
    gc.disable()
    work = {"convert": convert, "time": times, "memory": memory}[what]
    print(json.dumps(work(files, directory)))


if __name__ == "__main__":
    main()
