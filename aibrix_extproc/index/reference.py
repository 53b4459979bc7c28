"""The index in plain Python: which sources hold which blocks, and how deep a prompt is held.

This is the specification: another back end must answer as this one does. Read it with
`application` (what an event means), `source_state` (what a source holds), `masks` (which sources
hold a block) and `keys` (the name of a block).

Knows no ZMQ, no HTTP, no policy: it takes bytes and tokens. Safe from any thread. Payloads of
one source must come in order from one thread at a time; a `clear_source` or `remove_source` from
another thread makes an `apply` that is under way leave out the rest of its batch.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aibrix_extproc.index.application import Application, Source
from aibrix_extproc.index.blocks import GPU
from aibrix_extproc.index.events import decode_batch
from aibrix_extproc.index.gate import Gate
from aibrix_extproc.index.keys import request_keys, token_bytes
from aibrix_extproc.index.masks import ModelMasks, Usage
from aibrix_extproc.index.names import Names
from aibrix_extproc.index.results import Applied, IndexStats
from aibrix_extproc.index.saved import decode, encode
from aibrix_extproc.index.source_state import SourceState
from aibrix_extproc.index.transfer import Frozen, restore

DEFAULT_MAX_ORPHANS: Final = 4096


class PrefixIndex:
    """Depth of a prompt in every source, from the sources' own events."""

    def __init__(self, max_bytes: int = 0, max_orphans: int = DEFAULT_MAX_ORPHANS) -> None:
        """`max_bytes` 0 means no limit; `max_orphans` is in parked blocks per source."""
        self._gate = Gate()
        self._usage = Usage(max_bytes)
        self._max_orphans = max_orphans
        self._models: dict[str, ModelMasks] = {}
        self._sources: dict[int, Source] = {}
        self._next_source = 0

    # -- sources ------------------------------------------------------------------------------

    def add_source(
        self, model: str, lora_id: int | None = None, lora_name: str | None = None
    ) -> int:
        """A new KV cache of this model; its number is never used for another one.

        Events that name only `lora_id` (before vLLM 0.14) mean the adapter `lora_name`.
        """
        with self._gate.change():
            number = self._next_source
            self._next_source += 1
            masks = self._models.setdefault(model, ModelMasks(self._usage))
            masks.sources += 1
            state = SourceState(number, masks)
            self._sources[number] = Source(number, model, masks, lora_id, lora_name, state, Names())
            return number

    def remove_source(self, source: int) -> None:
        """Forget a source. It is in no answer from the first moment on; the time to tidy up
        grows with its placements, and others are let in meanwhile. KeyError if unknown."""
        with self._gate.change() as change:
            gone = self._sources.pop(source)
            state, gone.state = gone.state, SourceState(source, gone.masks)
            gone.masks.sources -= 1
            if not gone.masks.sources:
                del self._models[gone.model]
            state.retire(change)

    def clear_source(self, source: int) -> None:
        """Forget all that a source said: placements, orphans, groups, block size, `full`.

        As `remove_source` in time. KeyError if unknown.
        """
        with self._gate.change() as change:
            cleared = self._sources[source]
            before, cleared.state = cleared.state, SourceState(source, cleared.masks)
            before.retire(change)

    # -- events -------------------------------------------------------------------------------

    def apply(self, source: int, payload: bytes) -> Applied:
        """Apply one msgpack EventBatch. No bytes make it raise; KeyError if unknown.

        Requests are let in after every 256 blocks.
        """
        target = self._sources[source]
        return Application(target, self._gate, self._max_orphans).run(decode_batch(payload))

    # -- a restart ----------------------------------------------------------------------------

    def export_source(self, source: int, *, orphans: bool = True) -> bytes:
        """All that `apply` needs of a source to go on elsewhere; the layout is in `saved`.

        Parked blocks are the only ones with tokens in it: without `orphans` there are none, and
        a parent that comes later finds no children. An `apply` of that source under way in
        another thread may be in it by half: call it between two. KeyError if unknown.
        """
        with self._gate.look():
            target = self._sources[source]
            frozen = Frozen(target.state, target.names.seed, orphans=orphans)
        return encode(frozen.saved())

    def import_source(self, source: int, data: bytes) -> None:
        """Make a source that was just added hold what an exported one did.

        It behaves from then on as that one did, where both were added with the same adapter and
        the index has room: what does not fit is left out, and the source is full then. It counts
        for nothing before the end; a clear meanwhile wins. KeyError if unknown; ValueError for
        bytes that are no export, are damaged or of another version, and for a source that holds
        something: it is left as it was.
        """
        target = self._sources[source]
        saved = decode(data)
        with self._gate.change() as change:
            before = target.state
            if not before.blank:
                raise ValueError("import into a source that was just added: this one is in use")
            state = SourceState(source, target.masks)
            restore(state, saved, self._max_orphans, change)
            if target.state is before and source in self._sources:
                target.state, target.names = state, Names(saved.seed)
            else:
                state.retire(change)

    # -- questions ----------------------------------------------------------------------------

    def block_size(self, source: int) -> int | None:
        """Tokens per block of the last GPU block placed; None before one. KeyError if unknown.

        Of several groups, that of the group that counts.
        """
        counted = self._sources[source].state.counted
        return counted.block_size if counted else None

    def block_keys(
        self,
        tokens: Sequence[int],
        block_size: int,
        *,
        lora: str | None = None,
        cache_salt: str | None = None,
    ) -> "array[int]":
        """The keys of all full blocks of a prompt, as an array of unsigned 64-bit ints.

        `tokens` as in `keys.token_bytes`. ValueError for a block size below 1.
        """
        if block_size < 1:
            raise ValueError(f"a block of {block_size} tokens")
        return array("Q", request_keys(token_bytes(tokens), block_size, lora, cache_salt))

    def match(
        self,
        model: str,
        tokens: Sequence[int],
        *,
        lora: str | None = None,
        cache_salt: str | None = None,
    ) -> dict[int, int]:
        """Source → depth, in the source's own blocks; only sources with a depth above 0.

        `tokens` as in `keys.token_bytes`. Depth counts whole blocks of the prompt, its last
        token included: what an engine will reuse is at most (n − 1) // block size of them.
        """
        masks = self._models.get(model)
        if masks is None:
            return {}
        prompt = token_bytes(tokens)
        keys = {size: request_keys(prompt, size, lora, cache_salt) for size in masks.block_sizes()}
        found = {}
        with self._gate.look():
            for size, chain in keys.items():
                for source, held in masks.depths(size, chain):
                    depth = held - self._lookahead_blocks(source, size)
                    if depth > 0:
                        found[source] = depth
        return found

    def _lookahead_blocks(self, source: int, block_size: int) -> int:
        """Blocks at the end of a match whose hashes cover tokens that may differ."""
        return -(-self._sources[source].state.lookahead_tokens // block_size)

    def stats(self) -> IndexStats:
        """The size of the index; takes as long as there are sources."""
        by_medium: Counter[str] = Counter()
        per_source = {}
        orphans = 0
        full = []
        with self._gate.look():
            for number, source in self._sources.items():
                per_source[number] = 0
                for shelf in source.state.shelves.values():
                    by_medium[shelf.medium] += shelf.placements
                    per_source[number] += shelf.placements if shelf.medium == GPU else 0
                orphans += len(source.state.orphans)
                if source.state.full:
                    full.append(number)
            return IndexStats(
                sources=len(self._sources),
                blocks=self._usage.blocks,
                placements=by_medium.total(),
                orphans=orphans,
                bytes=self._usage.bytes,
                by_medium={medium: count for medium, count in by_medium.items() if count},
                full_sources=frozenset(full),
                per_source=per_source,
            )
