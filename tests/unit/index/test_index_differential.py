"""Both back ends through the same seeded random histories: every answer must be the same.

Engines keep a small cache and evict from it; some repeat blocks, lose their parents, serve
adapters, salts, media and groups, look ahead, or send damaged bytes. After every 256 events all
answers are compared: the depths of many prompts, the size, the block sizes; and what each batch
did at once.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aibrix_extproc import index
from aibrix_extproc.index import IndexStats, reference
from tests.backends import needs_core
from tests.events import TestEvent, batch, cleared, removed, stored

pytestmark = needs_core

COMPARE_EVERY_EVENTS = 256
ADAPTERS = [None, "a", "b"]
SALTS = [None, "s", "t"]
MODELS = ["m", "m", "m", "n"]


@dataclass
class Traits:
    """What the engines of a history do beside storing and evicting; shares of events."""

    copies: float = 0.05
    holes: float = 0.05
    orphans: float = 0.05
    clears: float = 0.002
    damage: float = 0.0
    conflicts: float = 0.0
    adapters: bool = False
    salts: bool = False
    media: bool = False
    groups: bool = False
    lookahead: bool = False
    byte_hashes: bool = False
    sizes: tuple[int, ...] = (4,)
    sources_change: bool = False
    max_orphans: int = 64


@dataclass
class Engine:
    """One source's engine: what it holds, by its own hashes."""

    rng: random.Random
    traits: Traits
    size: int
    held: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    """(hash, fields of the removal that takes it)."""
    capacity: int = 120

    def hash_of(self, content: object) -> Any:
        number = random.Random(repr(content)).getrandbits(64)
        if self.traits.byte_hashes:
            return number.to_bytes(8, "big") * 4
        return number - 2**63 if number % 5 == 0 else number

    def events(self, prompts: list[list[int]]) -> list[TestEvent]:
        """What one step of the engine announces."""
        rng, traits = self.rng, self.traits
        if rng.random() < traits.clears:
            self.held.clear()
            return [cleared()]
        events = self.evictions()
        tokens = rng.choice(prompts)
        lora = rng.choice(ADAPTERS) if traits.adapters else None
        salt = rng.choice(SALTS) if traits.salts else None
        place: dict[str, Any] = {}
        if traits.media and rng.random() < 0.3:
            place["medium"] = rng.choice(["CPU", "GPU", "DISK"])
        if traits.groups and rng.random() < 0.4:
            place["group_idx"] = rng.choice([0, 1, 2])
        blocks = [tokens[i : i + self.size] for i in range(0, len(tokens), self.size)]
        blocks = blocks[: rng.randint(1, len(blocks))]
        if len(blocks[-1]) < self.size:
            blocks.pop()
        if not blocks:
            return events
        above = [(self.size, lora, salt, blocks[:end]) for end in range(1, len(blocks) + 1)]
        hashes = [self.hash_of(content) for content in above]
        start = rng.randrange(len(blocks)) if rng.random() < traits.orphans else 0
        if rng.random() < traits.copies:
            start = len(blocks) - 1
        if rng.random() < traits.conflicts:
            hashes[-1] = rng.choice(self.held)[0] if self.held else hashes[0]
        fields = dict(place)
        if traits.groups and "group_idx" in place:
            fields["kv_cache_spec_kind"] = rng.choice(["full_attention"] * 5 + ["sliding_window"])
        if lora or salt:
            fields["lora_name"] = lora
            keys = [([lora] if lora else []) + ([salt] if salt and not n else [])
                    for n in range(len(blocks))][start:]  # fmt: skip
            fields["extra_keys"] = [k or None for k in keys]
        if traits.lookahead and rng.random() < 0.01:
            fields["lookahead_token_ids"] = [[1] * rng.randint(1, 5)]
        self.held += [(h, place) for h in hashes[start:]]
        parent = hashes[start - 1] if start else None
        flat = [t for b in blocks[start:] for t in b]
        return [*events, stored(hashes[start:], flat, parent, self.size, **fields)]

    def evictions(self) -> list[TestEvent]:
        gone = []
        while len(self.held) > self.capacity or self.rng.random() < self.traits.holes:
            if not self.held:
                break
            block_hash, place = self.held.pop(self.rng.randrange(len(self.held)))
            gone.append(removed([block_hash], **place))
        return gone


class Pair:
    """The same index twice."""

    def __init__(self, rng: random.Random, traits: Traits) -> None:
        self.rng, self.traits = rng, traits
        self.both = [
            reference.PrefixIndex(max_orphans=traits.max_orphans),
            index.PrefixIndex(max_orphans=traits.max_orphans),
        ]
        self.engines: dict[int, Engine] = {}
        self.prompts = self.make_prompts()

    def make_prompts(self) -> list[list[int]]:
        """Prompts that share prefixes of every length."""
        rng = self.rng
        prompts: list[list[int]] = []
        for _ in range(40):
            shared = rng.choice(prompts)[: rng.randrange(40)] if prompts else []
            tail = [rng.randrange(3) if rng.random() < 0.5 else rng.getrandbits(32)
                    for _ in range(rng.randrange(1, 40))]  # fmt: skip
            prompts.append(shared + tail)
        return prompts

    def add(self) -> None:
        rng = self.rng
        lora = rng.choice([(None, None), (1, "a")])
        model = rng.choice(MODELS)
        first, second = (one.add_source(model, *lora) for one in self.both)
        assert first == second
        size = rng.choice(self.traits.sizes)
        self.engines[first] = Engine(random.Random(rng.getrandbits(64)), self.traits, size)

    def change_sources(self) -> None:
        rng = self.rng
        number = rng.choice(list(self.engines))
        if rng.random() < 0.5:
            for one in self.both:
                one.clear_source(number)
            self.engines[number].held.clear()
            return
        for one in self.both:
            one.remove_source(number)
        del self.engines[number]
        self.add()

    def step(self) -> int:
        """One batch of one source, and what both say to it; returns its events."""
        rng = self.rng
        number = rng.choice(list(self.engines))
        events: list[TestEvent] = []
        for _ in range(rng.randint(1, 4)):
            events += self.engines[number].events(self.prompts)
        versions = ["0.33"] if self.traits.lookahead else ["0.23", "0.24", "0.33"]
        payload = batch(*events, version=rng.choice(versions))
        if rng.random() < self.traits.damage:
            payload = damaged(rng, payload)
        first, second = (one.apply(number, payload) for one in self.both)
        assert second == first, payload.hex()
        return max(1, len(events))

    def compare(self) -> None:
        slow, fast = self.both
        for prompt in self.prompts:
            for lora in ADAPTERS if self.traits.adapters else [None]:
                for salt in SALTS if self.traits.salts else [None]:
                    for model in set(MODELS):
                        expected = slow.match(model, prompt, lora=lora, cache_salt=salt)
                        found = fast.match(model, prompt, lora=lora, cache_salt=salt)
                        assert found == expected
        assert sizeless(fast.stats()) == sizeless(slow.stats())
        for number in self.engines:
            assert fast.block_size(number) == slow.block_size(number)


def sizeless(stats: IndexStats) -> IndexStats:
    """Without `bytes`, of which each back end has its own measure."""
    return replace(stats, bytes=bool(stats.bytes))


def damaged(rng: random.Random, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 3))
            case _:
                del changed[at : at + rng.randint(1, 3)]
        if not changed:
            break
    return bytes(changed)


HISTORIES: dict[str, tuple[Traits, int, int]] = {
    "one source": (Traits(), 1, 16_000),
    "copies and holes": (Traits(copies=0.3, holes=0.4), 7, 16_000),
    "orphans past their bound": (Traits(orphans=0.6, max_orphans=10), 5, 16_000),
    "adapters and salts": (Traits(adapters=True, salts=True), 10, 12_000),
    "media and groups": (Traits(media=True, groups=True, copies=0.2), 6, 16_000),
    "several block sizes": (Traits(sizes=(1, 2, 3, 8)), 12, 16_000),
    "lookahead": (Traits(lookahead=True, sizes=(2, 4)), 6, 12_000),
    "hashes of bytes": (Traits(byte_hashes=True, copies=0.2), 6, 12_000),
    "nonsense": (Traits(conflicts=0.2, orphans=0.3, media=True, groups=True), 4, 16_000),
    "damaged bytes": (Traits(damage=0.5, adapters=True, salts=True, media=True), 4, 24_000),
    "sources come and go": (Traits(sources_change=True, clears=0.02), 9, 16_000),
    "300 sources": (Traits(sources_change=True, copies=0.1), 300, 24_000),
    "everything": (
        Traits(0.1, 0.2, 0.2, 0.01, 0.05, 0.05, True, True, True, True, True,
               sizes=(2, 4), sources_change=True),
        20,
        20_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("traits", "sources", "events"), HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize("seed", [1, 2])
def test_both_back_ends_answer_alike(traits: Traits, sources: int, events: int, seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair(rng, traits)
    for _ in range(sources):
        pair.add()
    done = compared = 0
    while done < events:
        done += pair.step()
        if done - compared >= COMPARE_EVERY_EVENTS:
            compared = done
            pair.compare()
            if traits.sources_change:
                pair.change_sources()
    pair.compare()
    for number in list(pair.engines):
        for one in pair.both:
            one.remove_source(number)
    assert pair.both[1].stats() == pair.both[0].stats()
