"""Random histories of a cluster: engines that store, evict, repeat, lose and damage, by a seed.

What an engine announces is like the real thing in what matters to the index: a small cache, blocks
that are evicted, repeated, orphaned, of adapters, salts, media and groups, or plain nonsense.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from tests.events import TestEvent, batch, cleared, removed, stored

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


def make_prompts(rng: random.Random) -> list[list[int]]:
    """Prompts that share prefixes of every length."""
    prompts: list[list[int]] = []
    for _ in range(40):
        shared = rng.choice(prompts)[: rng.randrange(40)] if prompts else []
        tail = [rng.randrange(3) if rng.random() < 0.5 else rng.getrandbits(32)
                for _ in range(rng.randrange(1, 40))]  # fmt: skip
        prompts.append(shared + tail)
    return prompts


def next_payload(rng: random.Random, engine: Engine, prompts: list[list[int]]) -> tuple[bytes, int]:
    """A batch of some steps of an engine, damaged now and then, and the number of its events."""
    events: list[TestEvent] = []
    for _ in range(rng.randint(1, 4)):
        events += engine.events(prompts)
    versions = ["0.33"] if engine.traits.lookahead else ["0.23", "0.24", "0.33"]
    payload = batch(*events, version=rng.choice(versions))
    if rng.random() < engine.traits.damage:
        payload = damaged(rng, payload)
    return payload, max(1, len(events))


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
