"""Placing and taking blocks: copies are counted, depth has no holes, nonsense is not believed."""

import pytest

from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored

PROMPT = list(range(100, 116))
"""Four blocks of four tokens."""
HASHES = [11, 12, 13, 14]
WHOLE = stored(HASHES, PROMPT)

each_encoding = pytest.mark.parametrize("version", ["0.9", "0.17", "0.23", "0.24", "0.33"])


@each_encoding
def test_a_prompt_is_held_as_deep_as_it_was_stored(new_index: NewIndex, version: str) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored(HASHES[:3], PROMPT[:12]), version=version))
    assert (applied.stored, applied.events, applied.timestamp) == (3, 1, 1234.5)
    assert index.match("m", PROMPT) == {source: 3}
    assert index.match("m", PROMPT[:11]) == {source: 2}
    assert index.match("m", PROMPT[:3]) == {}
    assert index.match("m", [*PROMPT[:4], 0, *PROMPT[5:]]) == {source: 1}
    assert index.match("m", PROMPT[4:]) == {}
    assert index.match("other", PROMPT) == {}


def test_the_last_full_block_counts_even_where_an_engine_computes_it_again(
    new_index: NewIndex,
) -> None:
    """What is reusable of a depth is the caller's rule: (n − 1) // block size."""
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE))
    assert index.match("m", PROMPT) == {source: 4}


def test_later_chunks_follow_their_parent(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([11], PROMPT[:4])))
    index.apply(source, batch(stored([12, 13], PROMPT[4:12], parent=11)))
    assert index.match("m", PROMPT) == {source: 3}


def test_equal_tokens_after_different_blocks_are_different_blocks(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([11, 12], [1, 1, 1, 1, 2, 2, 2, 2])))
    assert index.match("m", [2, 2, 2, 2]) == {}
    assert index.match("m", [2, 2, 2, 2, 2, 2, 2, 2]) == {}


def test_a_removed_block_is_a_hole(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE))
    assert index.apply(source, batch(removed([12]))).removed == 1
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(removed([11])))
    assert index.match("m", PROMPT) == {}


def test_a_hole_is_mended_by_storing_the_block_again(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, removed([12])))
    index.apply(source, batch(stored([12], PROMPT[4:8], parent=11)))
    assert index.match("m", PROMPT) == {source: 4}


def test_each_copy_needs_its_own_removal(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, stored([14], PROMPT[12:], parent=13)))
    assert index.stats().placements == 5
    assert index.stats().blocks == 4
    index.apply(source, batch(removed([14])))
    assert index.match("m", PROMPT) == {source: 4}
    index.apply(source, batch(removed([14])))
    assert index.match("m", PROMPT) == {source: 3}


def test_one_removal_may_name_a_hash_twice(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, WHOLE))
    assert index.apply(source, batch(removed([14, 14]))).removed == 2
    assert index.match("m", PROMPT) == {source: 3}


def test_one_store_may_name_a_hash_twice(new_index: NewIndex) -> None:
    """The same block cannot follow itself: the second is other content under the same hash."""
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([11, 11], [1, 1, 1, 1, 1, 1, 1, 1])))
    assert applied.skipped == {"conflict": 1}
    assert index.match("m", [1, 1, 1, 1, 1, 1, 1, 1]) == {}


def test_removing_what_is_not_held_does_nothing(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE))
    applied = index.apply(source, batch(removed([99, b"11" * 8])))
    assert (applied.removed, applied.lossy, applied.skipped) == (0, False, {})
    index.apply(source, batch(removed([14]), removed([14])))
    index.apply(source, batch(stored([14], PROMPT[12:], parent=13)))
    assert index.match("m", PROMPT) == {source: 4}


def test_an_eviction_stands_before_the_block_that_took_its_place(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE))
    index.apply(source, batch(removed([14]), removed([13]), stored([13], PROMPT[8:12], parent=12)))
    assert index.match("m", PROMPT) == {source: 3}


def test_a_clear_empties_placements_and_keeps_the_block_size(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(WHOLE, WHOLE, cleared()))
    assert applied.cleared == 1
    assert index.match("m", PROMPT) == {}
    assert index.block_size(source) == 4
    stats = index.stats()
    assert (stats.blocks, stats.placements, stats.bytes) == (0, 0, 0)
    index.apply(source, batch(WHOLE))
    assert index.match("m", PROMPT) == {source: 4}


def test_events_after_a_clear_in_the_same_batch_count(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, cleared(), stored(HASHES[:2], PROMPT[:8])))
    assert index.match("m", PROMPT) == {source: 2}


@pytest.mark.parametrize(
    "hashes", [[1, -1, -(2**63), 2**64 - 1], [bytes([n]) * 32 for n in range(4)]]
)
def test_hashes_are_opaque(new_index: NewIndex, hashes: list[int | bytes]) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored(hashes, PROMPT)))
    assert index.match("m", PROMPT) == {source: 4}
    index.apply(source, batch(removed(hashes[2:])))
    assert index.match("m", PROMPT) == {source: 2}


def test_hashes_of_one_source_mean_nothing_in_another(new_index: NewIndex) -> None:
    index = new_index()
    one, other = index.add_source("m"), index.add_source("m")
    index.apply(one, batch(WHOLE))
    index.apply(other, batch(stored(HASHES, range(16))))
    index.apply(other, batch(removed(HASHES)))
    assert index.match("m", PROMPT) == {one: 4}
    index.apply(other, batch(stored([12], PROMPT[4:8], parent=11)))
    assert index.match("m", PROMPT) == {one: 4}


# -- nonsense -------------------------------------------------------------------------------


def test_a_hash_with_two_contents_means_neither(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, stored([14], PROMPT[12:], parent=13)))
    applied = index.apply(source, batch(stored([14], [0, 0, 0, 0], parent=13)))
    assert applied.skipped == {"conflict": 1}
    assert applied.stored == 0
    assert not applied.lossy
    assert index.match("m", PROMPT) == {source: 3}
    assert index.match("m", [*PROMPT[:12], 0, 0, 0, 0]) == {source: 3}
    assert index.stats().placements == 3


def test_what_follows_a_disbelieved_block_waits_for_it(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([12], [9, 9, 9, 9])))
    applied = index.apply(source, batch(WHOLE))
    assert (applied.stored, applied.parked, applied.skipped) == (1, 2, {"conflict": 1})
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(stored([12], PROMPT[4:8], parent=11)))
    assert index.match("m", PROMPT) == {source: 4}


def test_a_conflict_on_one_medium_takes_back_all_of_them(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE))
    index.apply(source, batch(stored([11], [0, 0, 0, 0], medium="CPU")))
    assert index.match("m", PROMPT) == {}
    assert index.stats().by_medium == {"GPU": 3}


def test_two_hashes_of_equal_content_are_both_needed_to_lose_it(new_index: NewIndex) -> None:
    """As an engine before 0.17 sends it, whose hash covers a salt that the event leaves out."""
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(WHOLE, stored([21, 22, 23], PROMPT[:12]), version="0.14"))
    assert (index.stats().blocks, index.stats().placements) == (4, 7)
    index.apply(source, batch(removed([11, 12, 13, 14]), version="0.14"))
    assert index.match("m", PROMPT) == {source: 3}
    index.apply(source, batch(removed([23, 22]), version="0.14"))
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(removed([21]), version="0.14"))
    assert index.match("m", PROMPT) == {}
    assert index.stats().bytes == 0


def test_three_hashes_of_equal_content_too(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(*(stored([h], PROMPT[:4]) for h in (1, 2, 3))))
    for gone, left in ((2, {source: 1}), (1, {source: 1}), (3, {})):
        index.apply(source, batch(removed([gone])))
        assert index.match("m", PROMPT) == left


@pytest.mark.parametrize(
    "event",
    [
        stored([1], [1, 2, 3]),
        stored([1], [1, 2, 3, 4, 5]),
        stored([1, 2], [1, 2, 3, 4]),
        stored([1], [1, 2, 3, 4], block_size=0),
        stored([1], [], block_size=0),
        stored([], [1, 2, 3, 4]),
        stored([1], [], block_size=16),
        stored([1], [1, 2, 3, 4], block_size=-4),
        stored([1], [1, 2, 3, -4]),
        stored([1], [1, 2, 3, 2**32]),
        stored([1], [1, 2, 3, 4], extra_keys=[]),
        stored([1], [1, 2, 3, 4], extra_keys=[None, None]),
    ],
)
def test_blocks_and_tokens_that_do_not_fit_are_never_sliced(new_index: NewIndex, event) -> None:  # type: ignore[no-untyped-def]
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(event, WHOLE))
    assert applied.skipped == {"misfit": 1}
    assert not applied.lossy
    assert index.match("m", PROMPT) == {source: 4}
    assert index.match("m", [1, 2, 3, 4]) == {}


def test_an_event_without_blocks_is_no_mistake(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([], []), removed([])))
    assert (applied.stored, applied.removed, applied.skipped, applied.events) == (0, 0, {}, 2)
