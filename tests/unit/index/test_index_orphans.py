"""Blocks whose parent is unknown: parked, joined, removed, bounded, never guessed to be roots."""

import pytest

from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored

PROMPT = list(range(20))
"""Five blocks of four tokens."""


def test_an_orphan_is_parked_and_never_a_root(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1)))
    assert (applied.stored, applied.parked, applied.skipped) == (0, 2, {})
    assert not applied.lossy
    stats = index.stats()
    assert (stats.orphans, stats.placements, stats.blocks) == (2, 0, 0)
    assert index.match("m", PROMPT) == {}
    assert index.match("m", PROMPT[4:]) == {}
    assert index.block_size(source) is None


def test_orphans_are_joined_when_their_parent_arrives(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([4, 5], PROMPT[12:20], parent=3)))
    index.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1)))
    assert index.stats().orphans == 4
    applied = index.apply(source, batch(stored([1], PROMPT[:4])))
    assert applied.stored == 5
    assert index.match("m", PROMPT) == {source: 5}
    assert index.stats().orphans == 0
    assert index.block_size(source) == 4


def test_a_parent_in_the_middle_of_an_event_joins_too(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([22], [9, 9, 9, 9], parent=2)))
    applied = index.apply(source, batch(stored([1, 2, 3], PROMPT[:12])))
    assert applied.stored == 4
    assert index.match("m", [*PROMPT[:8], 9, 9, 9, 9]) == {source: 3}
    assert index.match("m", PROMPT) == {source: 3}


def test_several_orphans_may_wait_for_one_parent(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    branches = [[n] * 4 for n in range(50, 60)]
    index.apply(source, batch(*(stored([tail[0]], tail, parent=1) for tail in branches)))
    assert index.apply(source, batch(stored([1], PROMPT[:4]))).stored == 11
    for tail in branches:
        assert index.match("m", [*PROMPT[:4], *tail]) == {source: 2}


def test_extras_and_copies_wait_with_their_orphan(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    orphan = stored([2], PROMPT[4:8], parent=1, extra_keys=[["mm"]])
    index.apply(source, batch(orphan, orphan))
    assert index.stats().orphans == 1
    applied = index.apply(source, batch(stored([1], PROMPT[:4], extra_keys=[["salt"]])))
    assert applied.stored == 3
    assert index.match("m", PROMPT, cache_salt="salt") == {source: 1}, "media are no text"
    assert index.apply(source, batch(removed([2]), removed([2]), removed([2]))).removed == 2
    assert index.stats().placements == 1


def test_a_removal_reaches_a_parked_block(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1)))
    assert index.apply(source, batch(removed([3]))).removed == 1
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 2}
    assert index.stats().orphans == 0


def test_a_removal_takes_one_copy_of_a_parked_block(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    orphan = stored([2], PROMPT[4:8], parent=1)
    index.apply(source, batch(orphan, orphan, removed([2]), stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 2}
    index.apply(source, batch(removed([2])))
    assert index.match("m", PROMPT) == {source: 1}


def test_a_removal_takes_a_placed_copy_before_a_parked_one(new_index: NewIndex) -> None:
    """Of a block that was stored again while its parent was gone, the known copy goes first:
    what is left may be a block too few, never one too many."""
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT[:8]), removed([1])))
    again = index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    assert again.parked == 1
    index.apply(source, batch(removed([2])))
    assert (index.stats().placements, index.stats().orphans) == (0, 1)
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 2}


def test_removals_on_another_medium_leave_an_orphan_alone(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    index.apply(source, batch(removed([2], medium="CPU")))
    assert index.stats().orphans == 1


def test_an_orphan_behind_a_removed_orphan_goes_on_waiting(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1), removed([2])))
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 1}
    assert index.stats().orphans == 1
    index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    assert index.match("m", PROMPT) == {source: 3}


@pytest.mark.parametrize("parent", [2, 3])
def test_blocks_that_are_their_own_ancestors_wait_for_ever(
    new_index: NewIndex, parent: int
) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([2, 3], PROMPT[:8], parent=parent)))
    assert (applied.stored, applied.parked) == (0, 2)
    # A block of that hash at last: its own child now says that it means something else.
    applied = index.apply(source, batch(stored([parent], PROMPT[:4])))
    assert applied.skipped == {"conflict": 1}
    assert index.match("m", PROMPT) == {}


def test_an_orphan_that_turns_out_to_mean_something_else_is_not_believed(
    new_index: NewIndex,
) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([7], [7, 7, 7, 7]), stored([7], PROMPT[4:8], parent=1)))
    assert index.match("m", [7, 7, 7, 7]) == {source: 1}
    applied = index.apply(source, batch(stored([1], PROMPT[:4])))
    assert applied.skipped == {"conflict": 1}
    assert index.match("m", [7, 7, 7, 7]) == {}
    assert index.match("m", PROMPT) == {source: 1}


def test_two_orphans_of_one_hash_and_different_content_are_not_believed(
    new_index: NewIndex,
) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    applied = index.apply(source, batch(stored([2], PROMPT[4:8], parent=99)))
    assert applied.skipped == {"conflict": 1}
    assert index.stats().orphans == 0
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 1}


# -- the bound ------------------------------------------------------------------------------


def test_past_the_bound_the_oldest_go_and_are_counted(new_index: NewIndex) -> None:
    index = new_index(max_orphans=3)
    source = index.add_source("m")
    orphans = [stored([n], [n] * 4, parent=100 + n) for n in range(5)]
    applied = index.apply(source, batch(*orphans))
    assert (applied.parked, applied.skipped) == (5, {"orphan_dropped": 2})
    assert not applied.lossy
    assert index.stats().orphans == 3
    for n in range(5):
        joined = index.apply(source, batch(stored([100 + n], [50 + n] * 4))).stored - 1
        assert joined == (1 if n >= 2 else 0)


def test_a_long_orphaned_chain_keeps_its_end(new_index: NewIndex) -> None:
    index = new_index(max_orphans=2)
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([2, 3, 4, 5], PROMPT[4:], parent=1)))
    assert applied.skipped == {"orphan_dropped": 2}
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 1}
    assert index.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1))).stored == 4
    assert index.match("m", PROMPT) == {source: 5}


def test_no_orphan_is_kept_where_none_may_be(new_index: NewIndex) -> None:
    index = new_index(max_orphans=0)
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    assert (applied.parked, applied.skipped) == (1, {"orphan_dropped": 1})
    assert (index.stats().orphans, index.stats().bytes) == (0, 0)


def test_the_bound_is_each_sources_own(new_index: NewIndex) -> None:
    index = new_index(max_orphans=1)
    sources = [index.add_source("m") for _ in range(3)]
    for source in sources:
        applied = index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
        assert applied.skipped == {}
    assert index.stats().orphans == 3


def test_a_clear_drops_the_orphans(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2], PROMPT[4:8], parent=1), cleared()))
    assert (index.stats().orphans, index.stats().bytes) == (0, 0)
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 1}
