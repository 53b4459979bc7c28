"""Sizes of blocks: each event's own, different ones side by side, and lookahead."""

import pytest

from tests.backends import NewIndex
from tests.events import batch, stored

PROMPT = list(range(64))


def test_each_source_answers_in_its_own_blocks(new_index: NewIndex) -> None:
    index = new_index()
    small, large, odd = (index.add_source("m") for _ in range(3))
    index.apply(small, batch(stored(range(10), PROMPT[:40], block_size=4)))
    index.apply(large, batch(stored(range(3), PROMPT[:48], block_size=16)))
    index.apply(odd, batch(stored(range(9), PROMPT[:63], block_size=7)))
    assert index.match("m", PROMPT) == {small: 10, large: 3, odd: 9}
    assert [index.block_size(s) for s in (small, large, odd)] == [4, 16, 7]


def test_blocks_of_one_size_say_nothing_about_another(new_index: NewIndex) -> None:
    index = new_index()
    small, large = index.add_source("m"), index.add_source("m")
    index.apply(small, batch(stored([1], [5] * 4, block_size=4)))
    index.apply(large, batch(stored([1], [5] * 8, block_size=8)))
    assert index.match("m", [5] * 4) == {small: 1}
    assert index.match("m", [5] * 8) == {small: 1, large: 1}


def test_a_source_counts_in_the_size_of_its_last_block(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored(range(4), PROMPT[:16], block_size=4)))
    index.apply(source, batch(stored([10], PROMPT[:16], block_size=16)))
    assert index.match("m", PROMPT) == {source: 1}
    assert index.block_size(source) == 16
    index.apply(source, batch(stored([11], [0] * 4, block_size=4)))
    assert index.match("m", PROMPT) == {source: 4}
    assert index.block_size(source) == 4


def test_a_source_without_blocks_has_no_size(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    assert index.block_size(source) is None
    index.apply(source, batch(stored([1], PROMPT[:4], medium="CPU")))
    assert index.block_size(source) is None


def test_a_block_may_be_one_token(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored(range(5), PROMPT[:5], block_size=1)))
    assert index.match("m", PROMPT) == {source: 5}


# -- lookahead ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lookahead", "lost"),
    [
        (None, 0),
        ([], 0),
        ([[], [], []], 0),
        ([5], 1),
        ([5, 6, 7, 8], 1),
        ([5, 6, 7, 8, 9], 2),
        ([[5], [6], [7]], 1),
        ([None, None, [1, 2, 3, 4, 5]], 2),
        (list(range(100)), 9),
    ],
)
def test_lookahead_costs_the_blocks_that_it_reaches_into(
    new_index: NewIndex, lookahead: list[object] | None, lost: int
) -> None:
    """ceil(L / block size), L the tokens behind a block that its hash covers."""
    index = new_index()
    source, plain = index.add_source("m"), index.add_source("m")
    event = stored([1, 2, 3], PROMPT[:12], lookahead_token_ids=lookahead)
    assert not index.apply(source, batch(event)).skipped
    index.apply(plain, batch(stored([1, 2, 3], PROMPT[:12])))
    depth = max(3 - lost, 0)
    assert index.match("m", PROMPT) == {plain: 3} | ({source: depth} if depth else {})


def test_lookahead_lasts_over_a_clear_of_the_engine_but_not_of_the_source(
    new_index: NewIndex,
) -> None:
    index = new_index()
    source = index.add_source("m")
    plain = stored([1, 2], PROMPT[:8])
    index.apply(source, batch(stored([9], PROMPT[:4], lookahead_token_ids=[[1]])))
    index.apply(source, batch({"type": "AllBlocksCleared"}, plain))
    assert index.match("m", PROMPT) == {source: 1}
    index.clear_source(source)
    index.apply(source, batch(plain))
    assert index.match("m", PROMPT) == {source: 2}
