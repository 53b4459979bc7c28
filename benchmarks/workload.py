"""Workload W: what many engines announce that share system prompts. Seeded; generated data only.

Sources, each with sequences of a shared prefix and a suffix of its own:

- 64 groups, each with a prefix of 32 blocks (think of system prompts), in every source;
- 100,000 suffixes of 6 blocks, each in one group; a source draws 2,000 of them, none twice;
- a block has 16 tokens below 128,000.

A source announces the prefix of a group when the group first comes up, then one event per
suffix. With 100 sources: 206,400 events, 1,404,800 placements, about 522,000 distinct blocks.
Sources take turns, as their engines would, so that each message finds another source's memory
cold. Hashes are 64-bit numbers that differ between sources.
"""

import random
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from benchmarks.messages import Message

BLOCK_TOKENS: Final = 16
GROUPS: Final = 64
PREFIX_BLOCKS: Final = 32
SUFFIX_BLOCKS: Final = 6
SUFFIXES: Final = 100_000
VOCABULARY: Final = 128_000

_encode: Final = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Stored:
    """One BlockStored before it is encoded."""

    source: int
    hashes: list[int]
    parent: int | None
    tokens: list[int]

    def encoded(self, *, arrays: bool) -> list[Any] | dict[str, Any]:
        """As vLLM 0.17 (arrays) or 0.32 (maps) sends it."""
        fields: dict[str, Any] = {
            "type": "BlockStored",
            "block_hashes": self.hashes,
            "parent_block_hash": self.parent,
            "token_ids": self.tokens,
            "block_size": BLOCK_TOKENS,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
            "extra_keys": [None] * len(self.hashes),
        }
        if arrays:
            return list(fields.values())
        return fields | {
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
            "kv_cache_spec_sliding_window": None,
        }


def block_hash(seed: int, source: int, number: int) -> int:
    """An engine's hash: 64 well-mixed bits (splitmix64), the same in every run."""
    x = (seed * 0x1000003 + source * 0x10000000 + number + 1) * 0x9E3779B97F4A7C15
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


class Workload:
    """W, scaled by its number of sources and of sequences per source."""

    def __init__(
        self,
        sources: int = 100,
        sequences: int = 2000,
        seed: int = 1,
        *,
        shared_hashes: bool = False,
    ) -> None:
        self.sources = sources
        self.sequences = sequences
        self.seed = seed
        self.shared_hashes = shared_hashes
        rng = random.Random(seed)
        draw = rng.choices
        vocabulary = range(VOCABULARY)
        self._prefixes = [draw(vocabulary, k=PREFIX_BLOCKS * BLOCK_TOKENS) for _ in range(GROUPS)]
        self._chosen = [rng.sample(range(SUFFIXES), sequences) for _ in range(sources)]

    def suffix(self, number: int) -> list[int]:
        """The tokens of one suffix, the same wherever it comes up."""
        rng = random.Random(self.seed << 32 | number)
        return rng.choices(range(VOCABULARY), k=SUFFIX_BLOCKS * BLOCK_TOKENS)

    def prompt(self, number: int) -> "array[int]":
        """Prefix and suffix: 38 blocks."""
        return array("I", self._prefixes[number % GROUPS] + self.suffix(number))

    def prompts_of(self, source: int) -> list[int]:
        """The suffixes that a source drew, in order."""
        return self._chosen[source]

    def _hashes(self, source: int, held: int, content: int, count: int) -> list[int]:
        """Of the blocks that a source stores next; `content` numbers them over all sources."""
        source, start = (0, content) if self.shared_hashes else (source, held)
        return [block_hash(self.seed, source, start + n) for n in range(count)]

    def events(self) -> Iterator[Stored]:
        """All events, sources taking turns after each sequence."""
        suffixes: dict[int, list[int]] = {}
        seen: list[dict[int, int]] = [{} for _ in range(self.sources)]
        counts = [0] * self.sources
        for turn in range(self.sequences):
            for source in range(self.sources):
                number = self._chosen[source][turn]
                group = number % GROUPS
                if group not in seen[source]:
                    content = group * PREFIX_BLOCKS
                    hashes = self._hashes(source, counts[source], content, PREFIX_BLOCKS)
                    counts[source] += PREFIX_BLOCKS
                    seen[source][group] = hashes[-1]
                    yield Stored(source, hashes, None, self._prefixes[group])
                if number not in suffixes:
                    suffixes[number] = self.suffix(number)
                content = GROUPS * PREFIX_BLOCKS + number * SUFFIX_BLOCKS
                hashes = self._hashes(source, counts[source], content, SUFFIX_BLOCKS)
                counts[source] += SUFFIX_BLOCKS
                yield Stored(source, hashes, seen[source][group], suffixes[number])

    def messages(self, *, events_per_message: int, arrays: bool) -> Iterator[Message]:
        """Payloads; a message goes out when its source has that many events."""
        waiting: list[list[Any]] = [[] for _ in range(self.sources)]
        for event in self.events():
            batch = waiting[event.source]
            batch.append(event.encoded(arrays=arrays))
            if len(batch) == events_per_message:
                yield event.source, payload(batch)
                batch.clear()
        for source, batch in enumerate(waiting):
            if batch:
                yield source, payload(batch)

    def removals(self, *, blocks_per_message: int = 16) -> Iterator[Message]:
        """Everything that was stored, evicted: one BlockRemoved per block, the last stored first
        within each sequence, sources taking turns."""
        held: list[list[int]] = [[] for _ in range(self.sources)]
        for event in self.events():
            held[event.source] += event.hashes
        for blocks in held:
            blocks.reverse()
        longest = max(map(len, held))
        for start in range(0, longest, blocks_per_message):
            for source, blocks in enumerate(held):
                gone = blocks[start : start + blocks_per_message]
                if gone:
                    yield (
                        source,
                        payload([
                            {"type": "BlockRemoved", "block_hashes": [h], "medium": "GPU",
                             "group_idx": 0}
                            for h in gone
                        ]),
                    )  # fmt: skip


def payload(events: list[Any]) -> bytes:
    """A batch as it comes off the wire."""
    return _encode([time.time(), events, 0])


def stored_chain(
    seed: int, source: int, tokens: "array[int]", blocks_per_event: int = 128
) -> Iterator[bytes]:
    """A long prompt as one source announces it: a message per prefill chunk."""
    parent = None
    step = blocks_per_event * BLOCK_TOKENS
    for start in range(0, len(tokens) - len(tokens) % BLOCK_TOKENS, step):
        part = tokens[start : start + step].tolist()
        part = part[: len(part) - len(part) % BLOCK_TOKENS]
        first = start // BLOCK_TOKENS
        hashes = [block_hash(seed, source, first + n) for n in range(len(part) // BLOCK_TOKENS)]
        yield payload([Stored(source, hashes, parent, part).encoded(arrays=False)])
        parent = hashes[-1]
