"""Mutated payloads of every recorded wire variant: both back ends survive, and answer alike.

10,000 payloads at scale 1, from the publishers of 30 versions of vLLM, live and replayed, and from
the recorded engines. What `apply` says, what `match` finds and what is held must be equal in both
back ends; a source beside the attacked one notices nothing; memory stays bounded.
"""

import functools
import random
import tracemalloc
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from aibrix_extproc.index import LOSSES, SKIP_REASONS, Applied, IndexStats, PrefixIndex
from aibrix_extproc.kvevents.wire import BadFrames, ReplayEnd, parse_live, parse_replay
from tests.backends import BACK_ENDS
from tests.events import batch, stored
from tests.hostile import bounded_memory, chunks, damaged_payload, rng_of
from tests.recordings import recorded

pytestmark = pytest.mark.hostile

CHUNK = 500
CHUNKS = 20
MEMORY_LIMIT_BYTES = 64 << 20
BYSTANDER = [3_000_000 + n for n in range(64)]
"""Tokens beyond every recorded vocabulary."""

Frames = tuple[bytes, ...]


@dataclass(frozen=True)
class Variant:
    """What one engine sent in one shape."""

    name: str
    messages: list[Frames]
    prompts: list[list[int]]
    """Token ids that its events name."""


@functools.cache
def variants() -> list[Variant]:
    sent: dict[str, list[Frames]] = {}
    for line in recorded("publisher_matrix"):
        sent.setdefault(f"{line['vllm']} {line['src']}", []).append(frames_of(line))
    for name in ("0.32-map-u64", "0.32-map-bytes32", "0.10.2-array-emulated"):
        sent[f"{name} live"] = [frames_of(line) for line in recorded(f"{name}/frames")]
    for name in ("0.32-map-u64", "0.10.2-array-emulated"):
        sent[f"{name} replay"] = [frames_of(line) for line in recorded(f"{name}/replay")]
    truth = [bytes.fromhex(line["payload"]) for line in recorded("0.32-truth/frames")[:200]]
    sent["0.32-truth live"] = [(b"t", n.to_bytes(8, "big"), p) for n, p in enumerate(truth)]
    readable = {name: [f for f in all_frames if read(f)] for name, all_frames in sent.items()}
    return [Variant(name, found, prompts_of(found)) for name, found in readable.items()]


def frames_of(line: dict[str, Any]) -> Frames:
    return tuple(map(bytes.fromhex, line["frames_hex"]))


def read(frames: Frames) -> bytes | None:
    """The payload, as event sync would take it off these frames; None for an end or a bad frame."""
    try:
        message = parse_replay(frames) if frames and not frames[0] else parse_live(frames)
    except BadFrames:
        return None
    return None if isinstance(message, ReplayEnd) else message.payload


def prompts_of(messages: list[Frames]) -> list[list[int]]:
    """Chains of the blocks stored, each a prompt that an engine held at some time."""
    chains: dict[Any, list[int]] = {}
    for frames in messages:
        for event in msgspec.msgpack.decode(read(frames) or b"")[1]:
            values = list(event.values()) if isinstance(event, dict) else event
            if values[0] == "BlockStored":
                hashes, parent, tokens = values[1:4]
                chains[hashes[-1]] = chains.get(parent, []) + tokens
    return sorted(chains.values(), key=len)[-4:]


def damaged_frames(rng: random.Random, frames: Frames, other: Frames) -> Frames:
    """Mostly the payload; now and then the frames around it."""
    if rng.random() < 0.9:
        return (*frames[:-1], damaged_payload(rng, frames[-1], other[-1]))
    made = list(frames)
    at = rng.randrange(len(made))
    match rng.randrange(4):
        case 0:
            del made[at]
        case 1:
            made.insert(at, rng.choice(other))
        case 2:
            made[at] = rng.randbytes(rng.randrange(10))
        case _:
            rng.shuffle(made)
    return tuple(made)


class Attack:
    """The same index in every back end, with a source under attack and one beside it."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.all: list[PrefixIndex] = [new(max_orphans=50) for new in BACK_ENDS.values()]
        for index in self.all:
            self.bystander = index.add_source("m")
            index.apply(self.bystander, batch(stored(range(16), BYSTANDER)))
            self.source = index.add_source("m")
        self.quiet = self.stats()

    def stats(self) -> IndexStats:
        """Equal in all, but for `bytes`, of which each has its own measure."""
        first, *others = (replace(index.stats(), bytes=0) for index in self.all)
        assert all(other == first for other in others)
        return first

    def apply(self, payload: bytes) -> Applied:
        first, *others = (index.apply(self.source, payload) for index in self.all)
        assert all(other == first for other in others), payload.hex()
        assert set(first.skipped) <= set(SKIP_REASONS)
        assert first.lossy == bool(LOSSES & set(first.skipped))
        return first

    def compare(self) -> None:
        for prompt in self.variant.prompts:
            for lora in (None, "tiny-lora"):
                first, *others = (index.match("m", prompt, lora=lora) for index in self.all)
                assert all(other == first for other in others)
                assert set(first) <= {self.source}
        for index in self.all:
            assert index.match("m", BYSTANDER)[self.bystander] == 16
        self.stats()

    def clear(self) -> None:
        """Nothing is left of what was said."""
        for index in self.all:
            index.clear_source(self.source)
        assert self.stats() == self.quiet


def attack(chunk: int) -> int:
    """The payloads of one chunk, over variants in turn; returns how many were applied."""
    rng = rng_of("payloads", chunk)
    every = variants()
    applied = 0
    for turn in range(CHUNK // 25):
        target = Attack(every[(chunk * (CHUNK // 25) + turn) % len(every)])
        messages = target.variant.messages
        for frames in messages[:20]:
            target.apply(read(frames) or b"")
        left = 25
        while left:
            frames = rng.choice(messages)
            if rng.random() < 0.4:
                target.apply(read(frames) or b"")
            payload = read(damaged_frames(rng, frames, rng.choice(messages)))
            if payload is None:
                continue
            target.apply(payload)
            left -= 1
            applied += 1
            if left % 5 == 0:
                target.compare()
        target.clear()
    return applied


def test_every_recorded_wire_variant_is_there() -> None:
    names = [variant.name for variant in variants()]
    assert len(names) == 66
    assert all(variant.messages and variant.prompts for variant in variants())


@pytest.mark.parametrize("chunk", chunks(CHUNKS))
def test_mutated_payloads_get_the_same_defined_answer_of_every_back_end(chunk: int) -> None:
    with bounded_memory(MEMORY_LIMIT_BYTES):
        assert attack(chunk) == CHUNK


def test_no_payload_makes_the_reference_allocate_out_of_proportion() -> None:
    """The compiled core's allocations are counted in core/tests/hostile.rs."""
    rng = rng_of("allocations", 0)
    messages = [frames for variant in variants() for frames in variant.messages]
    index = BACK_ENDS["reference"](max_orphans=50)
    source = index.add_source("m")
    tracemalloc.start()
    try:
        for _ in range(500):
            payload = damaged_payload(rng, rng.choice(messages)[-1], rng.choice(messages)[-1])
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            index.apply(source, payload)
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak <= 100_000 + 200 * len(payload), payload.hex()
    finally:
        tracemalloc.stop()
