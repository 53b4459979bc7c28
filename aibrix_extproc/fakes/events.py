"""What an engine announces, and the bytes that each version of vLLM makes of it.

Owns the three events and their encoding: tagged arrays to vLLM 0.23, tagged maps from 0.24, with
the fields that the version knows. Knows neither when an event happens nor how it is sent.

Source of the field table and of every byte: the publishers of vLLM 0.9.0 to 0.33.0, recorded in
`tests/data/vllm`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

Version: TypeAlias = tuple[int, int, int]
BlockHash: TypeAlias = int | bytes
ExtraKey: TypeAlias = str | bytes | tuple[str, int]

FULL_ATTENTION: Final = "full_attention"
GPU: Final = "GPU"

MAPS_SINCE: Final[Version] = (0, 24, 0)
RANK_SINCE: Final[Version] = (0, 9, 1)
UNSIGNED_HASHES_SINCE: Final[Version] = (0, 10, 2)
UNHASHED_FIRST_SINCE: Final[Version] = (0, 24, 0)
REPLAY_TOPIC_SINCE: Final[Version] = (0, 26, 0)
EVENT_SOURCES_SINCE: Final[Version] = (0, 31, 0)
KV_USAGE_NAME_SINCE: Final[Version] = (0, 12, 0)
"""`vllm:kv_cache_usage_perc`; before, `vllm:gpu_cache_usage_perc`."""


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Blocks that became full, in the order of the prompt.

    `token_ids` holds `block_size` tokens for each of `block_hashes`; `parent_block_hash` is the
    block before the first, None at the start of a prompt. `extra_keys` has one item per block.
    """

    block_hashes: Sequence[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = GPU
    lora_name: str | None = None
    extra_keys: Sequence[Sequence[ExtraKey] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None
    lookahead_token_ids: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """One copy of each hash is gone."""

    block_hashes: Sequence[BlockHash]
    medium: str | None = GPU
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """Every block is gone."""


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared

_ALWAYS: Final = object()
"""Marks a field that an array and a map carry even where it is empty."""

_Fields: TypeAlias = tuple[tuple[str, Version, object], ...]

_FIELDS: Final[dict[str, _Fields]] = {
    "BlockStored": (
        ("block_hashes", (0, 9, 0), _ALWAYS),
        ("parent_block_hash", (0, 9, 0), _ALWAYS),
        ("token_ids", (0, 9, 0), _ALWAYS),
        ("block_size", (0, 9, 0), _ALWAYS),
        ("lora_id", (0, 9, 0), _ALWAYS),
        ("medium", (0, 10, 2), _ALWAYS),
        ("lora_name", (0, 14, 0), _ALWAYS),
        ("extra_keys", (0, 17, 0), None),
        ("group_idx", (0, 20, 0), None),
        ("kv_cache_spec_kind", (0, 22, 0), None),
        ("kv_cache_spec_sliding_window", (0, 22, 0), None),
        ("locality", (0, 26, 0), None),
        ("ownership", (0, 29, 0), None),
        ("session_id", (0, 30, 0), None),
        ("lookahead_token_ids", (0, 33, 0), None),
    ),
    "BlockRemoved": (
        ("block_hashes", (0, 9, 0), _ALWAYS),
        ("medium", (0, 10, 2), _ALWAYS),
        ("group_idx", (0, 20, 0), None),
        ("locality", (0, 26, 0), None),
        ("ownership", (0, 29, 0), None),
    ),
    "AllBlocksCleared": (),
}


def parse_version(text: str) -> Version:
    """`0.10.1.1.post2` → (0, 10, 1). Raises ValueError where the first parts are no numbers."""
    parts = text.split("+", 1)[0].split(".")[:3]
    numbers = [int(part) for part in parts]
    while len(numbers) < 3:
        numbers.append(0)
    return numbers[0], numbers[1], numbers[2]


def _wire_type(name: str, version: Version) -> tuple[type[msgspec.Struct], tuple[str, ...]]:
    """The message as this version declares it, and its fields in order.

    msgspec writes the bytes, as it does in the engine: an empty optional field is left out of a
    map and kept in an array, and a message of more than 15 fields has a 16-bit map header (0.33).
    """
    known = [(field, default) for field, since, default in _FIELDS[name] if since <= version]
    declared: list[Any] = [
        (field, Any) if default is _ALWAYS else (field, Any, default) for field, default in known
    ]
    struct = msgspec.defstruct(
        name,
        declared,
        tag=name,
        array_like=version < MAPS_SINCE,
        omit_defaults=True,
        gc=False,
    )
    return struct, tuple(field for field, _ in known)


class EventEncoder:
    """Turns a batch of events into the payload of one vLLM version."""

    def __init__(self, version: Version, rank: int = 0) -> None:
        self._rank = rank
        self._sends_rank = version >= RANK_SINCE
        self._types = {name: _wire_type(name, version) for name in _FIELDS}
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, timestamp: float, events: Iterable[Event]) -> bytes:
        """One msgpack batch; `timestamp` in seconds since the epoch.

        Raises TypeError or OverflowError for a value that msgpack cannot hold.
        """
        batch: list[object] = [timestamp, [self._message(event) for event in events]]
        if self._sends_rank:
            batch.append(self._rank)
        return self._encoder.encode(batch)

    def _message(self, event: Event) -> msgspec.Struct:
        struct, fields = self._types[type(event).__name__]
        return struct(*[getattr(event, field) for field in fields])
