"""From a payload to events: what an engine said, checked for its types.

Owns the wire's fields (vLLM 0.9 to 0.33, SGLang), the two encodings (tagged arrays, tagged
maps) and the rule of what an unreadable part costs. Knows nothing of blocks, keys or sources:
whether an event makes sense is the index's business.

A payload is decoded as a whole, by msgspec into the structs below: half the time of an untyped
decoder and a check in Python. Only where that fails is it cut into events, each decoded alone,
so that a bad one costs itself. What decides:

- Types are strict: a bool is no int, a string is no hash, a float is no token.
- Unknown fields, and items beyond the known ones, are ignored, unread.
- Of two equal names in a map the last counts; a map that names two kinds is unreadable.
- Bytes after the batch make the whole payload unreadable: what was read may not be what was
  meant.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from aibrix_extproc.index import results
from aibrix_extproc.index.boundaries import (
    ARRAY_KINDS,
    TAG_FIELD,
    NoBoundary,
    is_array,
    split_batch,
    tag_of,
)

MAX_HASH_BYTES: Final = 64
MAX_MEDIUM_CHARACTERS: Final = 64

BlockHash = int | Annotated[bytes, Meta(max_length=MAX_HASH_BYTES)]
"""The engine's own name of a block. Ints of any sign, or 16 or 32 bytes; opaque."""
Medium = Annotated[str, Meta(max_length=MAX_MEDIUM_CHARACTERS)]


class BlockStored(Struct, gc=False):
    """Blocks that the engine now holds. The order of fields is that of the array encoding."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    """The block before the first; None at the start of a prompt."""
    token_ids: list[int]
    """Of all blocks, one after another."""
    block_size: int
    """Tokens per block."""
    lora_id: int | None = None
    medium: Medium | None = None
    lora_name: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    """Per block: what else went into the engine's hash."""
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: Any = None
    locality: Any = None
    ownership: Any = None
    session_id: Any = None
    lookahead_token_ids: list[int | list[int] | None] | None = None
    """Tokens behind a block that its hash covers too: one list, or one list per block."""
    cache_salt: str | None = None
    """SGLang's; vLLM's salt is in extra_keys. SGLang sends maps, so no array has it."""


class BlockRemoved(Struct, gc=False):
    """One copy of each of these blocks is gone."""

    block_hashes: list[BlockHash]
    medium: Medium | None = None
    group_idx: int | None = None


class AllBlocksCleared(Struct, gc=False):
    """The engine holds nothing any more."""


class _StoredMap(BlockStored, tag_field=TAG_FIELD, tag="BlockStored", gc=False): ...


class _RemovedMap(BlockRemoved, tag_field=TAG_FIELD, tag="BlockRemoved", gc=False): ...


class _ClearedMap(AllBlocksCleared, tag_field=TAG_FIELD, tag="AllBlocksCleared", gc=False): ...


class _StoredArray(
    BlockStored, tag_field=TAG_FIELD, tag="BlockStored", array_like=True, gc=False
): ...


class _RemovedArray(
    BlockRemoved, tag_field=TAG_FIELD, tag="BlockRemoved", array_like=True, gc=False
): ...


class _ClearedArray(
    AllBlocksCleared, tag_field=TAG_FIELD, tag="AllBlocksCleared", array_like=True, gc=False
): ...


class _BatchOfMaps(Struct, array_like=True, gc=False):
    ts: Any
    events: list[_StoredMap | _RemovedMap | _ClearedMap]


class _BatchOfArrays(Struct, array_like=True, gc=False):
    ts: Any
    events: list[_StoredArray | _RemovedArray | _ClearedArray]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in a batch for an event that could not be read."""

    reason: str
    """Of results.SKIP_REASONS."""


Event = BlockStored | BlockRemoved | AllBlocksCleared | Unreadable


class Batch(Struct, frozen=True, gc=False):
    """What one payload says, in order."""

    timestamp: float | None
    """The engine's clock, seconds since the epoch; None where it is no finite number."""
    events: Sequence[Event]


UNREADABLE_PAYLOAD: Final = Batch(None, (Unreadable(results.PAYLOAD),))

_UNREADABLE_BY_TAG: Final = {
    "BlockStored": Unreadable(results.UNREADABLE_STORED),
    "BlockRemoved": Unreadable(results.UNREADABLE_REMOVED),
    "AllBlocksCleared": Unreadable(results.UNREADABLE_CLEARED),
    None: Unreadable(results.UNREADABLE_EVENT),
}
_UNKNOWN: Final = Unreadable(results.UNKNOWN_EVENT)

_whole_of_maps: Final = msgspec.msgpack.Decoder(_BatchOfMaps)
_whole_of_arrays: Final = msgspec.msgpack.Decoder(_BatchOfArrays)
_one_map: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(
    _StoredMap | _RemovedMap | _ClearedMap
)
_one_array: Final[msgspec.msgpack.Decoder[Event]] = msgspec.msgpack.Decoder(
    _StoredArray | _RemovedArray | _ClearedArray
)
_anything: Final = msgspec.msgpack.Decoder()

_DECODING_ERRORS: Final = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""ValueError: text that is no UTF-8. RecursionError: deep nesting."""

_EVENTS_HEADER_AT: Final = 10
_HEADER_BYTES: Final = {0xDC: 3, 0xDD: 5}
_SHORTEST_BATCH_BYTES: Final = 16


def decode_batch(payload: bytes) -> Batch:
    """The events of a msgpack EventBatch `[ts, [event, …], …]`. Never raises.

    An event that cannot be read is an `Unreadable` in its place; a payload that cannot be cut
    into events is a batch of one `Unreadable`.
    """
    whole = _whole_of_arrays if _seems_of_arrays(payload) else _whole_of_maps
    try:
        batch = whole.decode(payload)
    except _DECODING_ERRORS:
        return _decode_one_by_one(payload)
    return Batch(_seconds(batch.ts), batch.events)


def _seems_of_arrays(payload: bytes) -> bool:
    """A guess from the usual header, [float64, [first event; only speed depends on it."""
    if len(payload) < _SHORTEST_BATCH_BYTES:
        return False
    first = _EVENTS_HEADER_AT + _HEADER_BYTES.get(payload[_EVENTS_HEADER_AT], 1)
    return payload[first] in ARRAY_KINDS


def _decode_one_by_one(payload: bytes) -> Batch:
    try:
        ts, events = split_batch(payload)
    except NoBoundary:
        return UNREADABLE_PAYLOAD
    try:
        timestamp = _seconds(_anything.decode(ts))
    except _DECODING_ERRORS:
        timestamp = None
    return Batch(timestamp, [_decode_event(event) for event in events])


def _decode_event(event: bytes) -> Event:
    try:
        return _one_array.decode(event) if is_array(event) else _one_map.decode(event)
    except _DECODING_ERRORS:
        return _UNREADABLE_BY_TAG.get(tag_of(event), _UNKNOWN)


def _seconds(ts: object) -> float | None:
    if isinstance(ts, bool) or not isinstance(ts, (int, float)):
        return None
    return float(ts) if math.isfinite(ts) else None
