"""Recorded events beside ours: whole, and with each recorded hash paired with one of ours.

Owns the pairs, and what recorded blocks hold. Knows no recording by its name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from tests.recordings import payload_of

SIZE = 32
UNKNOWN = 1_000_000
"""Ids from here on stand for tokens that the recording does not tell: never a full block's."""

Map = Mapping[str, Any]


class Pairs:
    """Which of our hashes is which recorded one."""

    def __init__(self) -> None:
        self._recorded: dict[object, object] = {}
        self._ours: dict[object, object] = {}

    def same(self, recorded: object, ours: object) -> bool:
        """Pair two hashes that are new; two that are known must be each other's."""
        first = self._recorded.setdefault(ours, recorded)
        second = self._ours.setdefault(recorded, ours)
        return first == recorded and second == ours

    def ours(self, recorded: object) -> object:
        return self._ours.get(recorded)

    def compare(self, recorded: Sequence[Map], ours: Sequence[Map]) -> None:
        """All events of a step, whole."""
        assert [shape(event) for event in ours] == [shape(event) for event in recorded]
        for theirs, mine in zip(recorded, ours, strict=True):
            for name in ("block_hashes", "parent_block_hash"):
                left, right = theirs.get(name), mine.get(name)
                many = isinstance(left, list)
                for a, b in zip(left if many else [left], right if many else [right], strict=True):
                    assert self.same(a, b), (name, a, b)


def shape(event: Map) -> Map:
    """An event without its hashes, of which only the number is kept."""
    return {
        name: len(value) if name == "block_hashes" else value
        for name, value in event.items()
        if name != "parent_block_hash"
    }


def events_of(payload: bytes) -> list[Map]:
    return list(msgpack.unpackb(payload)[1])


class Chains:
    """The tokens of each recorded block, from the start of its prompt, and that prompt's salt."""

    def __init__(self, frames: Sequence[Map]) -> None:
        self._salts: dict[object, str] = {}
        self._blocks: dict[object, tuple[object, list[int]]] = {}
        for frame in frames:
            for event in events_of(payload_of(frame)):
                if event["type"] != "BlockStored":
                    continue
                parent = event["parent_block_hash"]
                for index, name in enumerate(event["block_hashes"]):
                    tokens = event["token_ids"][index * SIZE : (index + 1) * SIZE]
                    self._blocks[name] = (parent, tokens)
                    extras = [key for key in event["extra_keys"][index] or () if parent is None]
                    if extras and extras[-1] != event["lora_name"]:
                        self._salts[name] = extras[-1]
                    parent = name

    def tokens(self, name: object) -> list[int]:
        found: list[int] = []
        while name is not None:
            name, tokens = self._blocks[name]
            found = [*tokens, *found]
        return found

    def salt(self, name: object) -> str | None:
        while self._blocks[name][0] is not None:
            name = self._blocks[name][0]
        return self._salts.get(name)
