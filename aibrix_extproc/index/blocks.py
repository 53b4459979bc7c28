"""What a BlockStored means, as far as it can be said without knowing what the source holds.

Owns the rules of block size, adapters, extras, media and groups on the wire. Knows nothing of
placements, so it needs no lock: a payload is understood before the index is entered.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from aibrix_extproc.index.events import BlockStored
from aibrix_extproc.index.keys import (
    TOKEN_BYTES,
    UnusableExtras,
    block_key,
    encode_extras,
    nameless_root_key,
    plain_keys,
    root_key,
    token_bytes,
)
from aibrix_extproc.index.names import Names
from aibrix_extproc.index.results import MISFIT, UNREADABLE_STORED

GPU: Final = "GPU"
"""The medium that counts for depth, and that an event without one means."""


class StoredBlocks(Struct, frozen=True, gc=False):
    """Consecutive blocks of one prompt, on one shelf."""

    medium: str
    group: int
    kind: str | None
    """What the event calls the group's kind, if anything."""
    lookahead_tokens: int
    problem: str | None = None
    """Why the blocks cannot be used (MISFIT, UNREADABLE_STORED); then there are none."""
    unnamed_adapter: bool = False
    hashes: Sequence[int] = ()
    """By their names."""
    parent: int | None = None
    root: int = 0
    """The key before block 0, where there is no parent."""
    block_size: int = 0
    tokens: bytes = b""
    extras: Sequence[bytes] | None = None
    """Encoded, one per block; None where no block has any."""

    def keys(self, parent_key: int, start: int, end: int) -> list[int]:
        """The keys of the blocks from `start` up to `end`, after the key of the one before."""
        step = self.block_size * TOKEN_BYTES
        if self.extras is None:
            return plain_keys(parent_key, self.tokens[start * step : end * step], self.block_size)
        keys = []
        for index in range(start, end):
            block, extras = self.content(index)
            parent_key = block_key(parent_key, block, extras)
            keys.append(parent_key)
        return keys

    def content(self, index: int) -> tuple[bytes, bytes]:
        """Tokens and encoded extras of one block."""
        step = self.block_size * TOKEN_BYTES
        extras = self.extras[index] if self.extras is not None else b""
        return self.tokens[index * step : index * step + step], extras


def understand(
    event: BlockStored, names: Names, lora_id: int | None, lora_name: str | None
) -> StoredBlocks:
    """The blocks of an event of a source whose events with `lora_id` mean `lora_name`."""
    medium = GPU if event.medium is None else event.medium
    group, kind = event.group_idx or 0, event.kv_cache_spec_kind
    lookahead = _lookahead_tokens(event.lookahead_token_ids) if event.lookahead_token_ids else 0
    tokens = _tokens_that_fit(event)
    if tokens is None:
        return StoredBlocks(medium, group, kind, lookahead, MISFIT)
    adapter = _adapter_of(event, lora_id, lora_name)
    try:
        extras = _extras_of_blocks(event, adapter)
    except UnusableExtras:
        return StoredBlocks(medium, group, kind, lookahead, UNREADABLE_STORED)
    parent, size = event.parent_block_hash, event.block_size
    return StoredBlocks(
        medium,
        group,
        kind,
        lookahead,
        None,
        isinstance(adapter, int),
        names.of_all(event.block_hashes),
        None if parent is None else names.of(parent),
        _root(size, adapter) if parent is None and tokens else 0,
        size,
        tokens,
        extras,
    )


def _tokens_that_fit(event: BlockStored) -> bytes | None:
    """The tokens' bytes; None where they are not exactly those of the event's blocks.

    Engines send such events for offload placeholders and masked groups.
    """
    blocks, size = len(event.block_hashes), event.block_size
    if size < 1 or len(event.token_ids) != blocks * size:
        return None
    if event.extra_keys is not None and len(event.extra_keys) != blocks:
        return None
    try:
        return token_bytes(event.token_ids)
    except OverflowError:
        return None


def _adapter_of(event: BlockStored, lora_id: int | None, lora_name: str | None) -> str | int | None:
    """The adapter's name; its id where nobody gave it a name; None without one."""
    if event.lora_name is not None or event.lora_id is None:
        return event.lora_name
    if lora_name is not None and event.lora_id == lora_id:
        return lora_name
    return event.lora_id


def _root(block_size: int, adapter: str | int | None) -> int:
    if isinstance(adapter, int):
        return nameless_root_key(block_size, adapter)
    return root_key(block_size, adapter)


def _extras_of_blocks(event: BlockStored, adapter: str | int | None) -> list[bytes] | None:
    """Per block what goes into its key beside the tokens; None where no block has any.

    The adapter's name leads an engine's extra keys, and is in our root already. SGLang names
    the salt in a field of its own, which counts for block 0 as a request's salt does.
    """
    if event.extra_keys is None:
        if not event.cache_salt or event.parent_block_hash is not None or not event.block_hashes:
            return None
        return [encode_extras((event.cache_salt,)), *[b""] * (len(event.block_hashes) - 1)]
    if not any(event.extra_keys):
        return None
    return [encode_extras(_without_adapter(keys, adapter)) for keys in event.extra_keys]


def _without_adapter(keys: Sequence[object] | None, adapter: str | int | None) -> Sequence[object]:
    if not keys:
        return ()
    return keys[1:] if isinstance(adapter, str) and keys[0] == adapter else keys


def _lookahead_tokens(lists: Sequence[int | list[int] | None]) -> int:
    """The most tokens that a hash covers behind its block: one list, or one list per block."""
    bare = sum(isinstance(item, int) for item in lists)
    return max(bare, *(len(item) for item in lists if isinstance(item, list)), 0)
