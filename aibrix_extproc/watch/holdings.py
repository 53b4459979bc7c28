"""Who holds what: which blocks stand in how many sources, and how much two sources share.

Owns the grouping. Blocks that the same sources hold are one group, for a prompt's beginning that
was sent to three engines is hundreds of blocks with the same three holders. Only what is on the
GPU counts, as for depth. Knows block keys and no tokens, no socket and no clock.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aibrix_extproc.index.blocks import GPU
from aibrix_extproc.index.saved import SavedSource
from aibrix_extproc.watch.chains import Chains
from aibrix_extproc.watch.words import readable

MAX_GROUPS: Final = 50
MAX_PAIR_SOURCES: Final = 32
"""Pairs are compared among the sources that hold most; 200 sources have 19,900 pairs."""
MAX_PAIRS: Final = 20
MAX_BLOCKS: Final = 1_000_000
"""Looked at, over all sources: about 150 MB for as long as it takes. Of more, every second one or
every fourth and so on is taken by its key, the same ones in every source, and counts for them."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one source holds at one moment."""

    name: str
    model: str
    keys: Sequence[int]
    """Of the blocks on its GPU, each once."""
    names: Sequence[int]
    """Those of the engine's hashes for the same blocks (`index.names`)."""
    by_medium: Mapping[str, int]
    """Medium → blocks, each copy counted."""
    orphans: int
    """Parked blocks."""


def held_by(name: str, model: str, saved: SavedSource) -> Held:
    """What an exported source holds."""
    by_medium: Counter[str] = Counter()
    names: dict[int, int] = {}
    for shelf in saved.shelves:
        by_medium[readable(shelf.medium)] += len(shelf.names) + sum(shelf.copies)
        if shelf.medium == GPU:
            names.update(zip(shelf.keys, shelf.names, strict=True))
    counts = {medium: count for medium, count in by_medium.items() if count}
    keys = array("Q", names)
    return Held(name, model, keys, array("Q", names.values()), counts, len(saved.orphans))


@dataclass(frozen=True, slots=True)
class Group:
    """Blocks that exactly these sources hold."""

    holders: tuple[str, ...]
    blocks: int
    key: int
    """Of one of them: the first of its prompt, as far as that is known."""
    model: str
    depths: tuple[int, int] | None = None
    """The first and last place of its blocks in their prompts, as far as they are known."""
    tokens: tuple[int, ...] | None = None
    """Of the block `key`; only where they were asked for."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sources, and the blocks that both hold."""

    one: str
    other: str
    shared: int
    share: float
    """Of the blocks of the one that holds fewer."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Who holds what at one moment."""

    sources: int
    blocks: int
    """Distinct blocks over all sources."""
    shared: int
    """Those that at least two sources hold."""
    groups: tuple[Group, ...]
    """The most holders first, then the most blocks; at most MAX_GROUPS."""
    pairs: tuple[Pair, ...]
    """The most shared blocks first; at most MAX_PAIRS."""
    orphans: Mapping[str, int]
    """Source → parked blocks."""
    by_medium: Mapping[str, int]
    """Medium → blocks over all sources, each copy counted."""
    one_in: int = 1
    """Above 1, numbers of blocks are estimates: one in so many was looked at."""


def holdings(held: Sequence[Held], chains: Mapping[str, Chains] | None = None) -> Holdings:
    """Who holds what of these sources; `chains` by their names, for where the blocks stand."""
    one_in = _one_in(sum(len(one.keys) for one in held))
    held = [_sample(one, one_in) for one in held]
    blocks = shared = 0
    groups: list[Group] = []
    pairs: Counter[tuple[str, str]] = Counter()
    for model in sorted({one.model for one in held}):
        of_model = [one for one in held if one.model == model]
        masks = _masks(of_model)
        by_mask = Counter(masks.values())
        blocks += len(masks)
        shared += sum(count for mask, count in by_mask.items() if mask & (mask - 1))
        wide = sorted(by_mask, key=lambda mask: (-mask.bit_count(), -by_mask[mask]))[:MAX_GROUPS]
        members = _members(masks, set(wide))
        groups += [_group(of_model, mask, members[mask], chains or {}, one_in) for mask in wide]
        _count_pairs(of_model, by_mask, pairs)
    groups.sort(key=lambda group: (-len(group.holders), -group.blocks))
    media: Counter[str] = Counter()
    for one in held:
        media.update(one.by_medium)
    return Holdings(
        sources=len(held),
        blocks=blocks * one_in,
        shared=shared * one_in,
        groups=tuple(groups[:MAX_GROUPS]),
        pairs=_widest(pairs, {one.name: len(one.keys) for one in held}, one_in),
        orphans={one.name: one.orphans for one in held},
        by_medium=dict(media),
        one_in=one_in,
    )


def _one_in(blocks: int) -> int:
    """A power of two."""
    one_in = 1
    while blocks > MAX_BLOCKS * one_in:
        one_in *= 2
    return one_in


def _sample(held: Held, one_in: int) -> Held:
    """What is looked at of a source: keys are hashes, so any of their bits choose evenly."""
    if one_in == 1:
        return held
    pairs = [(k, n) for k, n in zip(held.keys, held.names, strict=True) if not k & (one_in - 1)]
    return replace(held, keys=[key for key, _ in pairs], names=[name for _, name in pairs])


def _masks(held: Sequence[Held]) -> dict[int, int]:
    """Key → its holders, a bit each."""
    masks: dict[int, int] = {}
    for place, one in enumerate(held):
        bit = 1 << place
        for key in one.keys:
            masks[key] = masks.get(key, 0) | bit
    return masks


def _members(masks: Mapping[int, int], wanted: set[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {mask: [] for mask in wanted}
    for key, mask in masks.items():
        if mask in wanted:
            members[mask].append(key)
    return members


def _group(
    held: Sequence[Held],
    mask: int,
    keys: Sequence[int],
    chains: Mapping[str, Chains],
    one_in: int,
) -> Group:
    holders = [one for place, one in enumerate(held) if mask >> place & 1]
    placed = []
    for one in holders:
        known = chains.get(one.name)
        if known is None:
            continue
        names = dict(zip(one.keys, one.names, strict=True))
        notes = [(known.find(names[key]), key) for key in keys]
        placed = [(note.depth, key, note.tokens) for note, key in notes if note is not None]
        if placed:
            break
    first = min(placed, default=None)
    return Group(
        holders=tuple(one.name for one in holders),
        blocks=len(keys) * one_in,
        key=min(keys) if first is None else first[1],
        model=holders[0].model,
        depths=None if first is None else (first[0], max(depth for depth, _, _ in placed)),
        tokens=None if first is None else first[2],
    )


def _count_pairs(
    held: Sequence[Held], by_mask: Mapping[int, int], pairs: Counter[tuple[str, str]]
) -> None:
    largest = sorted(range(len(held)), key=lambda place: -len(held[place].keys))
    compared = sorted(largest[:MAX_PAIR_SOURCES])
    for mask, count in by_mask.items():
        inside = [place for place in compared if mask >> place & 1]
        for at, one in enumerate(inside):
            for other in inside[at + 1 :]:
                pairs[held[one].name, held[other].name] += count


def _widest(
    pairs: Counter[tuple[str, str]], sizes: Mapping[str, int], one_in: int
) -> tuple[Pair, ...]:
    widest: Iterable[tuple[tuple[str, str], int]] = pairs.most_common(MAX_PAIRS)
    return tuple(
        Pair(one, other, count * one_in, count / min(sizes[one], sizes[other]))
        for (one, other), count in widest
    )
