"""The KV cache of one engine rank: paged blocks, prefix reuse, eviction, and the events of it.

Owns which block holds what, and says so in events. Knows no clock, no request queue and no
socket. It follows the rules of vLLM v1 (`v1/core/block_pool.py`, `kv_cache_manager.py`):

- block 0 is reserved, so a cache of n blocks holds n - 1;
- only full blocks are kept for reuse, under a hash chained over parent, tokens and extras;
- a prompt of n tokens reuses at most (n - 1) // block_size blocks, because its last token must
  be computed. A repeat of an exact multiple of the block size thus computes its last block
  again, and the same hash lives in two blocks;
- a block that nobody uses stays readable until it is taken: the least recently freed first, and
  of one request the tail before the head. Since 0.24 a freed block without a hash, which nobody
  can reuse, is taken before all others; before, it waited in the same line.

With these rules the events and the reuse of a recorded vLLM 0.32.0 come out block for block
(`tests/contract/test_fake_engine_shape.py`).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from aibrix_extproc.fakes.events import (
    FULL_ATTENTION,
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    Event,
)

_GROUP = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: the name that clients send, and its number in the order of loading."""

    name: str
    lora_id: int


class BlockHasher:
    """Opaque block hashes of one engine: another seed gives other hashes of the same tokens.

    `hash_bytes` is 8 (an integer on the wire, unsigned unless `signed`) or 16 or 32 (bytes).
    """

    def __init__(self, seed: int, hash_bytes: int = 8, signed: bool = False) -> None:
        if hash_bytes not in (8, 16, 32):
            raise ValueError(f"hash_bytes is {hash_bytes}; engines send 8, 16 or 32")
        self._key = seed.to_bytes(8, "big")
        self._size = hash_bytes
        self._signed = signed

    def hash(
        self, parent: BlockHash | None, tokens: Sequence[int], extras: tuple[str, ...]
    ) -> BlockHash:
        """The name of a full block after `parent` (None: the first of a prompt)."""
        state = hashlib.blake2b(digest_size=self._size, key=self._key)
        state.update(repr((parent, extras)).encode("utf-8", "surrogatepass"))
        state.update(array("q", tokens).tobytes())
        digest = state.digest()
        return int.from_bytes(digest, "big", signed=self._signed) if self._size == 8 else digest


class Block:
    """One page of the cache. `hash` is None unless it is full and may be reused."""

    __slots__ = ("hash", "index", "refs")

    def __init__(self, index: int) -> None:
        self.index = index
        self.refs = 0
        self.hash: BlockHash | None = None


@dataclass(slots=True, eq=False)
class CachedSequence:
    """The tokens of one request, prompt then answer, and the blocks that it holds."""

    tokens: list[int]
    adapter: Adapter | None = None
    cache_salt: str | None = None
    session_id: str | None = None
    report_hits: bool = False
    """Announce reused blocks too (`vllm_xargs.kv_cache_report_mode: full`)."""
    blocks: list[Block] = field(default_factory=list)
    hashes: list[BlockHash] = field(default_factory=list)
    """Of the full blocks of `tokens`, as far as they were needed."""
    computed_tokens: int = 0
    """Tokens whose keys and values are in `blocks`, or will be at the end of the step."""
    announced_blocks: int = 0
    """Leading blocks that are in the cache under their hash."""

    def extras(self, index: int) -> tuple[str, ...]:
        """What block `index` is hashed with beside its tokens: adapter, and salt in block 0."""
        adapter = (self.adapter.name,) if self.adapter else ()
        salt = (self.cache_salt,) if self.cache_salt and index == 0 else ()
        return adapter + salt


class BlockManager:
    """The blocks of one rank. Not thread-safe: the engine's loop owns it."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        hasher: BlockHasher,
        unhashed_first: bool = True,
    ) -> None:
        """`unhashed_first`: take blocks that cannot be reused before all others (since 0.24)."""
        if num_blocks < 2 or block_size < 1:
            raise ValueError("a cache needs 2 blocks (one is reserved) of at least 1 token")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._hasher = hasher
        self._unhashed_first = unhashed_first
        self._free: OrderedDict[int, Block] = OrderedDict(
            (index, Block(index)) for index in range(1, num_blocks)
        )
        self._by_hash: dict[BlockHash, dict[int, Block]] = {}
        self._events: list[Event] = []

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that fits."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def free_blocks(self) -> int:
        """Blocks that no request holds, those that can still be reused included."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that running requests hold."""
        return self.num_blocks - 1 - len(self._free)

    @property
    def usage(self) -> float:
        """The share of blocks that running requests hold, 0 to 1 (`vllm:kv_cache_usage_perc`)."""
        return self.used_blocks / (self.num_blocks - 1)

    def copies(self, block_hash: BlockHash) -> int:
        """How many blocks hold this hash now."""
        return len(self._by_hash.get(block_hash, ()))

    def reusable(self, sequence: CachedSequence, start: int = 0) -> list[Block]:
        """The leading blocks of a sequence that holds none yet, as far as they are cached.

        `start`: of those from this one on.
        """
        found: list[Block] = []
        for index in range(start, (len(sequence.tokens) - 1) // self.block_size):
            copies = self._by_hash.get(self._hash_of(sequence, index))
            if not copies:
                break
            found.append(next(iter(copies.values())))
        return found

    def fits(self, sequence: CachedSequence, reused: Sequence[Block]) -> bool:
        """Whether all that is known of a sequence that holds no block yet would fit now."""
        wanted = -(-len(sequence.tokens) // self.block_size) - len(reused)
        return wanted + sum(1 for block in reused if block.refs == 0) <= len(self._free)

    def allocate(
        self, sequence: CachedSequence, new_tokens: int, reused: Sequence[Block] = ()
    ) -> bool:
        """Make room for the next `new_tokens` tokens, after the `reused` blocks of a first call.

        False, with nothing changed, where the free blocks do not suffice. Blocks that become full
        are announced; what had to go for them is announced before.
        """
        if new_tokens == 1 and 0 < sequence.computed_tokens % self.block_size < self.block_size - 1:
            sequence.computed_tokens += 1  # within a block that it holds: nothing else changes
            return True
        reused_tokens = len(reused) * self.block_size
        total_tokens = sequence.computed_tokens + reused_tokens + new_tokens
        wanted = -(-total_tokens // self.block_size) - len(sequence.blocks) - len(reused)
        revived = sum(1 for block in reused if block.refs == 0)
        if wanted + revived > len(self._free):
            return False
        if reused:
            self._take_over(sequence, reused)
        sequence.blocks.extend(self._new_block() for _ in range(wanted))
        sequence.computed_tokens = total_tokens
        self._announce(sequence, min(total_tokens, len(sequence.tokens)) // self.block_size)
        return True

    def release(self, sequence: CachedSequence) -> None:
        """The sequence holds nothing any more; its blocks stay readable until they are taken."""
        for block in reversed(sequence.blocks):
            block.refs -= 1
            if block.refs == 0:
                self._free[block.index] = block
                if block.hash is None and self._unhashed_first:
                    self._free.move_to_end(block.index, last=False)
        sequence.blocks.clear()
        sequence.computed_tokens = 0
        sequence.announced_blocks = 0

    def reset(self) -> bool:
        """Forget every block. False, with nothing changed, while a request holds one."""
        if self.used_blocks:
            return False
        for copies in self._by_hash.values():
            for block in copies.values():
                block.hash = None
        self._by_hash.clear()
        self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _hash_of(self, sequence: CachedSequence, index: int) -> BlockHash:
        size, hashes = self.block_size, sequence.hashes
        while len(hashes) <= index:
            at = len(hashes)
            parent = hashes[-1] if hashes else None
            tokens = sequence.tokens[at * size : (at + 1) * size]
            hashes.append(self._hasher.hash(parent, tokens, sequence.extras(at)))
        return hashes[index]

    def _take_over(self, sequence: CachedSequence, reused: Sequence[Block]) -> None:
        for block in reused:
            if block.refs == 0:
                del self._free[block.index]
            block.refs += 1
        sequence.blocks.extend(reused)
        sequence.announced_blocks = len(reused)
        if sequence.report_hits:
            self._store_event(sequence, 0, len(reused))

    def _new_block(self) -> Block:
        _, block = self._free.popitem(last=False)
        if block.hash is not None:
            copies = self._by_hash[block.hash]
            del copies[block.index]
            if not copies:
                del self._by_hash[block.hash]
            self._events.append(BlockRemoved([block.hash], group_idx=_GROUP))
            block.hash = None
        block.refs = 1
        return block

    def _announce(self, sequence: CachedSequence, full_blocks: int) -> None:
        first = sequence.announced_blocks
        if full_blocks <= first:
            return
        for index in range(first, full_blocks):
            block = sequence.blocks[index]
            block.hash = self._hash_of(sequence, index)
            self._by_hash.setdefault(block.hash, {})[block.index] = block
        sequence.announced_blocks = full_blocks
        self._store_event(sequence, first, full_blocks)

    def _store_event(self, sequence: CachedSequence, first: int, end: int) -> None:
        size, adapter = self.block_size, sequence.adapter
        self._events.append(
            BlockStored(
                block_hashes=sequence.hashes[first:end],
                parent_block_hash=sequence.hashes[first - 1] if first else None,
                token_ids=sequence.tokens[first * size : end * size],
                block_size=size,
                lora_id=adapter.lora_id if adapter else None,
                lora_name=adapter.name if adapter else None,
                extra_keys=[sequence.extras(index) or None for index in range(first, end)],
                group_idx=_GROUP,
                kv_cache_spec_kind=FULL_ATTENTION,
                session_id=sequence.session_id,
            )
        )
