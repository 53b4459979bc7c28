"""Who holds what, from what sources hold."""

import random

import pytest

from aibrix_extproc.index.events import AllBlocksCleared, BlockRemoved, BlockStored
from aibrix_extproc.index.names import Names
from aibrix_extproc.watch import holdings as holdings_module
from aibrix_extproc.watch.chains import Chains, Note, Room
from aibrix_extproc.watch.holdings import Held, holdings


def held(name: str, *keys: int, model: str = "m") -> Held:
    """A source whose names are its keys, plus 1,000."""
    return Held(name, model, keys, [key + 1000 for key in keys], {"GPU": len(keys)}, 0)


def test_blocks_with_the_same_holders_are_one_group_and_the_widest_is_first() -> None:
    found = holdings([held("a", 1, 2, 3, 7), held("b", 1, 2, 3), held("c", 3)])
    assert [(group.holders, group.blocks) for group in found.groups] == [
        (("a", "b", "c"), 1),
        (("a", "b"), 2),
        (("a",), 1),
    ]
    assert (found.sources, found.blocks, found.shared) == (3, 4, 3)
    assert [(pair.one, pair.other, pair.shared, pair.share) for pair in found.pairs] == [
        ("a", "b", 3, 1.0),
        ("a", "c", 1, 1.0),
        ("b", "c", 1, 1.0),
    ]


def test_names_are_looked_at_only_for_those_of_whose_chains_something_is_known() -> None:
    """200 sources of a server, of which nothing is known, would cost a minute else."""
    nameless = Held("a", "m", [1, 2], [], {"GPU": 2}, 0)
    (group,) = holdings([nameless], {"b": Chains(Names(0), Room())}).groups
    assert (group.blocks, group.depths) == (2, None)


def test_the_same_key_in_two_models_is_two_blocks() -> None:
    found = holdings([held("a", 1), held("b", 1, model="other")])
    assert (found.blocks, found.shared, found.pairs) == (2, 0, ())


def test_nothing_is_held_by_nobody() -> None:
    found = holdings([held("a"), held("b")])
    assert (found.blocks, found.groups, found.pairs) == (0, (), ())


def test_more_blocks_than_are_looked_at_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings_module, "MAX_BLOCKS", 2_000)
    draw = random.Random(1)
    common, own = ([draw.getrandbits(64) for _ in range(4_000)] for _ in range(2))
    found = holdings([held("a", *common), held("b", *common, *own)])
    assert found.one_in == 8
    assert found.blocks == pytest.approx(8_000, rel=0.15)
    assert found.shared == pytest.approx(4_000, rel=0.15)
    assert found.pairs[0].share == 1.0


def test_pairs_are_compared_among_the_largest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings_module, "MAX_PAIR_SOURCES", 2)
    found = holdings([held("small", 1), held("a", 1, 2), held("b", 1, 2, 3)])
    assert [(pair.one, pair.other) for pair in found.pairs] == [("a", "b")]
    assert found.groups[0].holders == ("small", "a", "b")


def stored(*hashes: int, parent: int | None = None) -> BlockStored:
    return BlockStored(list(hashes), parent, list(range(2 * len(hashes))), 2)


def test_a_group_says_where_in_a_prompt_it_stands() -> None:
    chains = Chains(Names(0), Room(with_tokens=True))
    chains.note([stored(1003, 1001), stored(1002, parent=1001)])
    (group,) = holdings([held("a", 1, 2, 3)], {"a": chains}).groups
    assert group.depths == (0, 2)
    assert (group.key, group.tokens) == (3, (0, 1))


def test_notes_go_with_their_blocks_and_within_a_bound() -> None:
    room = Room(left=3)
    chains = Chains(Names(0), room)
    chains.note([stored(1, 2), stored(3, 4, parent=2)])
    assert (chains.find(3), chains.find(4), room.left) == (Note(2), None, 0)
    chains.note([BlockRemoved([1, 2])])
    assert (chains.find(1), room.left) == (None, 2)
    chains.note([stored(9, parent=77), AllBlocksCleared()])
    assert (chains.find(3), chains.find(9), room.left) == (None, None, 3)
