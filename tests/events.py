"""Encodes KV events as an engine would: arrays or maps, with the fields that its version has.

`stored(...)`, `removed(...)` and `cleared()` make events; `batch(...)` makes a payload of them:

    batch(stored([1, 2], tokens, block_size=4), removed([1]), version="0.32")

Fields that a version does not have are left out; a test that sets one is wrong, and told so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

FIRST_VERSION: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "BlockStored": {
        "block_hashes": (0, 9),
        "parent_block_hash": (0, 9),
        "token_ids": (0, 9),
        "block_size": (0, 9),
        "lora_id": (0, 9),
        "medium": (0, 10, 2),
        "lora_name": (0, 14),
        "extra_keys": (0, 17),
        "group_idx": (0, 20),
        "kv_cache_spec_kind": (0, 22),
        "kv_cache_spec_sliding_window": (0, 22),
        "locality": (0, 26),
        "ownership": (0, 29),
        "session_id": (0, 30),
        "lookahead_token_ids": (0, 33),
    },
    "BlockRemoved": {"block_hashes": (0, 9), "medium": (0, 10, 2), "group_idx": (0, 20)},
    "AllBlocksCleared": {},
}
"""Kind of event → field, in array order → the vLLM version that brought it."""

MAPS_FROM: Final = (0, 24)
NEWEST: Final = "0.33"

Hash = int | bytes


@dataclass(frozen=True)
class TestEvent:
    """One event before it is encoded."""

    __test__ = False

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def encoded(self, version: str) -> list[Any] | dict[str, Any]:
        """As this version of vLLM would hand it to msgpack."""
        number = tuple(int(part) for part in version.split("."))
        known = {n: v for n, v in FIRST_VERSION[self.kind].items() if v <= number}
        unknown = [n for n, v in self.fields.items() if n not in known and v is not None]
        assert not unknown, f"vLLM {version} has no {unknown}"
        if number >= MAPS_FROM:
            return {"type": self.kind} | {n: self.fields.get(n) for n in known}
        return [self.kind, *(self.fields.get(n) for n in known)]


def stored(
    hashes: Sequence[Hash],
    tokens: Sequence[int],
    parent: Hash | None = None,
    block_size: int = 4,
    **fields: Any,
) -> TestEvent:
    """BlockStored; further fields by their names on the wire."""
    named = {
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": block_size,
    }
    return TestEvent("BlockStored", named | fields)


def removed(hashes: Sequence[Hash], **fields: Any) -> TestEvent:
    """BlockRemoved; `medium` and `group_idx` where they matter."""
    return TestEvent("BlockRemoved", {"block_hashes": list(hashes)} | fields)


def cleared() -> TestEvent:
    """AllBlocksCleared."""
    return TestEvent("AllBlocksCleared")


def batch(*events: TestEvent | Any, version: str = NEWEST, ts: Any = 1234.5) -> bytes:
    """A payload. What is no TestEvent is encoded as it stands, for hostile tests."""
    encoded = [e.encoded(version) if isinstance(e, TestEvent) else e for e in events]
    ranked = tuple(int(part) for part in version.split(".")) > (0, 9)
    return msgspec.msgpack.encode([ts, encoded, 0] if ranked else [ts, encoded])


def sglang(hashes: Sequence[Hash], tokens: Sequence[Any], **fields: Any) -> dict[str, Any]:
    """BlockStored as SGLang sends it: a map, one block, signed hashes."""
    named = {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": None,
        "token_ids": list(tokens),
        "block_size": len(tokens),
        "lora_id": None,
        "medium": "GPU",
    }
    return named | fields
