"""A second index, as naive as can be: the oracle of the model-based tests.

It keeps a list of copies, each with its whole content from the first token on, and answers every
question by walking all of them. No hashing, no chains of keys, no masks, no counters: nothing
that could be wrong in the same way as in the index. It takes events as plain dicts by their
names on the wire, and checks their types itself.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

INDEXED_KINDS = {"full_attention", "mla_attention", "sink_full_attention"}

Path = tuple[Any, ...]
"""(adapter, block size, block 0, block 1, …); a block is (tokens, extras)."""
Shelf = tuple[str, int]
"""(medium, group)."""


@dataclass
class Copy:
    shelf: Shelf
    block_hash: Any
    path: Path


@dataclass
class Waiting:
    shelf: Shelf
    block_hash: Any
    parent: Any
    block: Any
    copies: int = 1


@dataclass
class Said:
    """What one batch did."""

    stored: int = 0
    removed: int = 0
    cleared: int = 0
    parked: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    lossy: bool = False


@dataclass
class Source:
    model: str
    lora_id: int | None
    lora_name: str | None
    copies: list[Copy] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    kinds: dict[int, str] = field(default_factory=dict)
    sizes: dict[Shelf, int | None] = field(default_factory=dict)
    """Every shelf that ever was, and the size of the last block placed there."""
    lookahead: int = 0

    def counted(self) -> Shelf | None:
        return min((s for s in self.sizes if s[0] == "GPU"), default=None, key=lambda s: s[1])

    def meaning(self, block_hash: Any) -> Path | None:
        found = [c.path for c in self.copies if same(c.block_hash, block_hash)]
        return found[0] if found else None


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def typed(value: Any) -> Any:
    """A value whose equality tells 1 from True and 1.0."""
    if isinstance(value, (list, tuple)):
        return ("list", *(typed(item) for item in value))
    return (type(value).__name__, repr(value))


def lookahead_of(lists: list[Any] | None) -> int:
    """One list of tokens for all blocks, or one list per block: the longest."""
    bare = [item for item in lists or [] if isinstance(item, int)]
    return max([len(bare)] + [len(item) for item in lists or [] if isinstance(item, list)])


class NaiveIndex:
    """Same questions as PrefixIndex, for as long as it is not full."""

    def __init__(self, max_orphans: int) -> None:
        self.max_orphans = max_orphans
        self.sources: dict[int, Source] = {}

    # -- questions ----------------------------------------------------------------------------

    def match(self, model: str, tokens: list[int], lora: str | None, salt: str | None) -> dict:  # type: ignore[type-arg]
        depths = {}
        for number, source in self.sources.items():
            shelf = source.counted()
            size = source.sizes[shelf] if shelf else None
            if source.model != model or size is None:
                continue
            path: Path = (("name", lora), size)
            depth = 0
            for start in range(0, len(tokens) - size + 1, size):
                extras = (typed(salt),) if salt and not start else ()
                path = (*path, (tuple(tokens[start : start + size]), extras))
                if not any(c.shelf == shelf and c.path == path for c in source.copies):
                    break
                depth += 1
            depth -= -(-source.lookahead // size)
            if depth > 0:
                depths[number] = depth
        return depths

    def block_size(self, number: int) -> int | None:
        source = self.sources[number]
        shelf = source.counted()
        return source.sizes[shelf] if shelf else None

    def blocks(self) -> int:
        return len({(s.model, c.path) for s in self.sources.values() for c in s.copies})

    def orphans(self) -> int:
        return sum(len(s.waiting) for s in self.sources.values())

    def by_medium(self) -> dict[str, int]:
        return dict(Counter(c.shelf[0] for s in self.sources.values() for c in s.copies))

    def per_source(self) -> dict[int, int]:
        return {n: sum(c.shelf[0] == "GPU" for c in s.copies) for n, s in self.sources.items()}

    # -- events -------------------------------------------------------------------------------

    def apply(self, number: int, events: list[dict[str, Any]]) -> Said:
        said = Said()
        for event in events:
            self._apply(self.sources[number], event, said)
        return said

    def _apply(self, source: Source, event: dict[str, Any], said: Said) -> None:
        kind = event["type"]
        if kind == "AllBlocksCleared":
            source.copies, source.waiting = [], []
            said.cleared += 1
        elif kind == "BlockRemoved":
            shelf = (event.get("medium") or "GPU", event.get("group_idx") or 0)
            said.removed += sum(self._take(source, shelf, h) for h in event["block_hashes"])
        elif kind == "BlockStored":
            self._store(source, event, said)
        else:
            said.skipped["unknown_event"] += 1

    def _take(self, source: Source, shelf: Shelf, block_hash: Any) -> bool:
        for copy in source.copies:
            if copy.shelf == shelf and same(copy.block_hash, block_hash):
                source.copies.remove(copy)
                return True
        for waiting in source.waiting:
            if waiting.shelf == shelf and same(waiting.block_hash, block_hash):
                waiting.copies -= 1
                if not waiting.copies:
                    source.waiting.remove(waiting)
                return True
        return False

    def _store(self, source: Source, event: dict[str, Any], said: Said) -> None:
        group, kind = event.get("group_idx") or 0, event.get("kv_cache_spec_kind")
        if kind is not None and 0 <= group < 64:
            source.kinds[group] = kind
        known = source.kinds.get(group)
        indexed = group == 0 if known is None else known in INDEXED_KINDS
        source.lookahead = max(source.lookahead, lookahead_of(event.get("lookahead_token_ids")))
        hashes, size = event["block_hashes"], event["block_size"]
        extra_keys = event.get("extra_keys")
        if size < 1 or len(event["token_ids"]) != size * len(hashes):
            said.skipped["misfit"] += 1
            return
        if extra_keys is not None and len(extra_keys) != len(hashes):
            said.skipped["misfit"] += 1
            return
        if not hashes:
            return
        adapter = self._adapter(source, event)
        if adapter[0] == "id":
            said.skipped["unnamed_adapter"] += 1
        if not indexed or not 0 <= group < 64:
            said.skipped["group_not_indexed"] += 1
            return
        shelf = (event.get("medium") or "GPU", group)
        source.sizes.setdefault(shelf, None)
        refused: set[str] = set()
        parent = event["parent_block_hash"]
        for number, block_hash in enumerate(hashes):
            extras = list((extra_keys or [None] * len(hashes))[number] or [])
            if extra_keys is None and not number and event["parent_block_hash"] is None:
                extras = [event["cache_salt"]] if event.get("cache_salt") else []
            if extras and adapter[0] == "name" and same(extras[0], adapter[1]):
                extras = extras[1:]
            tokens = tuple(event["token_ids"][number * size : (number + 1) * size])
            block = (tokens, tuple(typed(extra) for extra in extras))
            base = (adapter, size) if parent is None else source.meaning(parent)
            if base is None:
                self._park(source, Waiting(shelf, block_hash, parent, block), said, refused)
            else:
                self._place(source, Copy(shelf, block_hash, (*base, block)), 1, said, refused)
            parent = block_hash
        said.skipped.update(refused)

    def _adapter(self, source: Source, event: dict[str, Any]) -> tuple[str, Any]:
        lora_id, name = event.get("lora_id"), event.get("lora_name")
        if name is not None or lora_id is None:
            return ("name", name)
        if source.lora_name is not None and source.lora_id == lora_id:
            return ("name", source.lora_name)
        return ("id", lora_id)

    def _place(
        self, source: Source, copy: Copy, copies: int, said: Said, refused: set[str]
    ) -> bool:
        if source.meaning(copy.block_hash) not in (None, copy.path):
            self._disbelieve(source, copy.block_hash)
            refused.add("conflict")
            return False
        source.copies += [Copy(copy.shelf, copy.block_hash, copy.path) for _ in range(copies)]
        source.sizes[copy.shelf] = len(copy.path[-1][0])
        said.stored += copies
        if copies and not self._joining:
            self._join(source, copy.block_hash, said, refused)
        return True

    _joining = False

    def _join(self, source: Source, block_hash: Any, said: Said, refused: set[str]) -> None:
        """Breadth first: the children of a block, oldest first, then their children."""
        self._joining = True
        parents = [block_hash]
        while parents:
            parent = parents.pop(0)
            while True:
                base = source.meaning(parent)
                children = [w for w in source.waiting if same(w.parent, parent)]
                if base is None or not children:
                    break
                child = children[0]
                source.waiting.remove(child)
                copy = Copy(child.shelf, child.block_hash, (*base, child.block))
                self._place(source, copy, child.copies, said, refused)
                parents.append(child.block_hash)
        self._joining = False

    def _park(self, source: Source, block: Waiting, said: Said, refused: set[str]) -> None:
        for parked in source.waiting:
            if parked.shelf == block.shelf and same(parked.block_hash, block.block_hash):
                if not (same(parked.parent, block.parent) and parked.block == block.block):
                    self._disbelieve(source, block.block_hash)
                    refused.add("conflict")
                    return
                parked.copies += 1
                said.parked += 1
                return
        source.waiting.append(block)
        said.parked += 1
        if len(source.waiting) > self.max_orphans:
            del source.waiting[0]
            said.skipped["orphan_dropped"] += 1

    def _disbelieve(self, source: Source, block_hash: Any) -> None:
        source.copies = [c for c in source.copies if not same(c.block_hash, block_hash)]
        source.waiting = [w for w in source.waiting if not same(w.block_hash, block_hash)]
