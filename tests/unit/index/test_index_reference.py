"""Sources, models, the size of the index and its limit."""

from array import array

import pytest

from aibrix_extproc.index import LOSSES, SKIP_REASONS
from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored

PROMPT = list(range(16))
HASHES = [1, 2, 3, 4]
WHOLE = batch(stored(HASHES, PROMPT))


# -- sources --------------------------------------------------------------------------------


def test_numbers_of_sources_are_never_used_again(new_index: NewIndex) -> None:
    index = new_index()
    seen = set()
    for _ in range(20):
        source = index.add_source("m")
        assert source not in seen
        seen.add(source)
        index.apply(source, WHOLE)
        index.remove_source(source)
    assert index.stats().sources == 0


def test_a_new_source_does_not_inherit_from_a_removed_one(new_index: NewIndex) -> None:
    """Its bit may be the old one's; its blocks must not."""
    index = new_index()
    stays = index.add_source("m")
    index.apply(stays, WHOLE)
    for _ in range(5):
        source = index.add_source("m")
        assert index.match("m", PROMPT) == {stays: 4}
        index.apply(source, batch(stored(HASHES[:2], PROMPT[:8])))
        assert index.match("m", PROMPT) == {stays: 4, source: 2}
        index.remove_source(source)
        assert index.match("m", PROMPT) == {stays: 4}


@pytest.mark.parametrize("unknown", [0, 1, -1, 10**9])
def test_an_unknown_source_is_a_key_error(new_index: NewIndex, unknown: int) -> None:
    index = new_index()
    for ask in (
        lambda: index.apply(unknown, WHOLE),
        lambda: index.apply(unknown, b"\xc1"),
        lambda: index.clear_source(unknown),
        lambda: index.remove_source(unknown),
        lambda: index.block_size(unknown),
    ):
        with pytest.raises(KeyError):
            ask()


def test_a_removed_source_is_unknown(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.remove_source(source)
    with pytest.raises(KeyError):
        index.apply(source, WHOLE)
    with pytest.raises(KeyError):
        index.remove_source(source)


def test_models_are_kept_apart(new_index: NewIndex) -> None:
    index = new_index()
    one, other = index.add_source("one"), index.add_source("other")
    index.apply(one, WHOLE)
    index.apply(other, batch(stored(HASHES[:1], PROMPT[:4])))
    assert index.match("one", PROMPT) == {one: 4}
    assert index.match("other", PROMPT) == {other: 1}
    assert index.match("third", PROMPT) == {}
    assert index.stats().blocks == 5
    index.remove_source(one)
    assert index.match("one", PROMPT) == {}
    assert index.match("other", PROMPT) == {other: 1}


def test_clearing_a_source_leaves_it_as_new(new_index: NewIndex) -> None:
    index = new_index()
    source, other = index.add_source("m"), index.add_source("m")
    index.apply(source, WHOLE)
    index.apply(source, batch(stored([9], PROMPT[:4], parent=8)))
    index.apply(other, WHOLE)
    index.clear_source(source)
    assert index.match("m", PROMPT) == {other: 4}
    assert index.block_size(source) is None
    stats = index.stats()
    assert (stats.sources, stats.placements, stats.orphans) == (2, 4, 0)
    index.apply(source, batch(stored(HASHES[:3], PROMPT[:12])))
    assert index.match("m", PROMPT) == {source: 3, other: 4}


def test_a_hundred_sources_each_have_their_own_depth(new_index: NewIndex) -> None:
    index = new_index()
    sources = [index.add_source("m") for _ in range(100)]
    prompt = list(range(400))
    expected = {}
    for number, source in enumerate(sources):
        blocks = number * 37 % 101
        index.apply(source, batch(stored(range(blocks), prompt[: 4 * blocks])))
        if blocks:
            expected[source] = min(blocks, 100)
    assert index.match("m", prompt) == expected
    assert index.match("m", array("I", prompt)) == expected
    assert index.match("m", array("I", prompt).tobytes()) == expected
    assert index.match("m", prompt[:22]) == {s: min(d, 5) for s, d in expected.items()}


# -- what apply says ------------------------------------------------------------------------


def test_every_reason_is_on_the_closed_list_and_says_what_it_is() -> None:
    assert set(SKIP_REASONS) >= LOSSES
    assert all(SKIP_REASONS.values())


@pytest.mark.parametrize(
    ("event", "reason", "lossy"),
    [
        (["BlockStored", "nonsense"], "unreadable_stored", False),
        (["BlockMoved", [1]], "unknown_event", False),
        (["BlockRemoved", ["1"]], "unreadable_removed", True),
        ({"type": "AllBlocksCleared", 5: 1}, "unreadable_cleared", True),
        ({"kind": "BlockRemoved"}, "unreadable_event", True),
        (None, "unreadable_event", True),
    ],
)
def test_an_unreadable_event_costs_itself_and_may_be_a_loss(
    new_index: NewIndex, event: object, reason: str, lossy: bool
) -> None:
    index = new_index()
    source = index.add_source("m")
    payload = batch(stored(HASHES[:2], PROMPT[:8]), event, stored(HASHES[2:], PROMPT[8:], parent=2))
    applied = index.apply(source, payload)
    assert applied.skipped == {reason: 1}
    assert applied.lossy is lossy
    assert (applied.stored, applied.events) == (4, 3)
    assert index.match("m", PROMPT) == {source: 4}


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"hello", WHOLE[:-1], WHOLE + b"\0", b"\x90"])
def test_an_unreadable_payload_is_a_loss(new_index: NewIndex, payload: bytes) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, payload)
    assert applied.skipped == {"payload": 1}
    assert applied.lossy
    assert (applied.stored, applied.timestamp) == (0, None)
    assert index.stats().bytes == 0


def test_a_reason_counts_events(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(["A"], ["B"], None, {}, stored([1], [1])))
    assert applied.skipped == {"unknown_event": 2, "unreadable_event": 2, "misfit": 1}


# -- size -----------------------------------------------------------------------------------


def test_equal_contents_are_of_equal_size(new_index: NewIndex) -> None:
    """However they came about: in other order, with detours, after other sources."""
    straight, detour = new_index(), new_index()
    one = straight.add_source("m")
    straight.apply(one, WHOLE)
    straight.apply(one, batch(stored([9], PROMPT[:4], parent=8)))
    for _ in range(3):
        gone = detour.add_source("m")
        detour.apply(gone, WHOLE)
        detour.apply(gone, batch(stored([7], PROMPT[:4], parent=6)))
    other = detour.add_source("m")
    for source in list(detour.stats().per_source):
        if source != other:
            detour.remove_source(source)
    detour.apply(other, batch(stored([9], PROMPT[:4], parent=8)))
    detour.apply(other, batch(stored([50, 51], [50] * 8), removed([50, 51])))
    detour.apply(other, batch(stored(HASHES[2:], PROMPT[8:], parent=2)))
    detour.apply(other, batch(stored(HASHES[:2], PROMPT[:8])))
    assert detour.stats().bytes == straight.stats().bytes > 0


def test_a_shared_block_is_smaller_than_two(new_index: NewIndex) -> None:
    index = new_index()
    one, other = index.add_source("m"), index.add_source("m")
    index.apply(one, WHOLE)
    alone = index.stats().bytes
    index.apply(other, WHOLE)
    assert alone < index.stats().bytes < 2 * alone


def test_removals_shrink_the_index_step_by_step(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, WHOLE)
    sizes = [index.stats().bytes]
    for block_hash in HASHES:
        index.apply(source, batch(removed([block_hash])))
        sizes.append(index.stats().bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5
    assert sizes[-1] == 0


def test_copies_of_a_block_take_one_note_and_give_it_back(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, WHOLE)
    once = index.stats()
    index.apply(source, WHOLE)
    twice = index.stats()
    index.apply(source, WHOLE)
    assert index.stats().placements == 3 * once.placements
    assert 0 < twice.bytes - once.bytes < once.bytes
    assert index.stats().bytes == twice.bytes
    for _ in range(2):
        index.apply(source, batch(removed(HASHES)))
    assert index.stats() == once


def test_hashes_of_equal_meaning_take_a_note_and_give_it_back(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4])))
    one = index.stats().bytes
    index.apply(source, batch(stored([2], PROMPT[:4])))
    two = index.stats().bytes
    index.apply(source, batch(stored([3], PROMPT[:4])))
    three = index.stats().bytes
    assert 0 < three - two < two - one
    index.apply(source, batch(removed([3, 2])))
    assert index.stats().bytes == one
    index.clear_source(source)
    assert index.stats().bytes == 0


@pytest.mark.parametrize("how", ["clear", "remove", "event"])
def test_nothing_is_left_of_what_was_forgotten(new_index: NewIndex, how: str) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, WHOLE)
    index.apply(source, batch(stored(HASHES, PROMPT, medium="CPU")))
    index.apply(source, batch(stored([9], PROMPT[:4], parent=8)))
    if how == "clear":
        index.clear_source(source)
    elif how == "remove":
        index.remove_source(source)
    else:
        index.apply(source, batch(cleared()))
    stats = index.stats()
    assert (stats.blocks, stats.placements, stats.orphans, stats.bytes) == (0, 0, 0, 0)
    assert stats.by_medium == {}


# -- the limit ------------------------------------------------------------------------------


def size_of_one_block(new_index: NewIndex) -> int:
    index = new_index()
    index.apply(index.add_source("m"), batch(stored([1], PROMPT[:4])))
    return index.stats().bytes


def test_past_the_limit_a_source_takes_no_new_block(new_index: NewIndex) -> None:
    index = new_index(max_bytes=3 * size_of_one_block(new_index))
    source = index.add_source("m")
    applied = index.apply(source, WHOLE)
    assert (applied.stored, applied.parked, applied.skipped) == (3, 0, {"full": 1})
    assert not applied.lossy
    assert index.stats().full_sources == {source}
    assert index.match("m", PROMPT) == {source: 3}
    assert index.stats().bytes <= 3 * size_of_one_block(new_index)


def test_a_full_source_says_so_until_it_is_cleared(new_index: NewIndex) -> None:
    one_block = size_of_one_block(new_index)
    index = new_index(max_bytes=2 * one_block)
    source = index.add_source("m")
    index.apply(source, WHOLE)
    assert index.apply(source, batch(removed([1, 2]))).removed == 2
    assert index.stats().bytes == 0
    applied = index.apply(source, batch(stored([9], [9] * 4)))
    assert (applied.stored, applied.skipped) == (0, {"full": 1}), "there is room, but a gap too"
    index.clear_source(source)
    assert index.stats().full_sources == frozenset()
    assert index.apply(source, batch(stored([9], [9] * 4))).stored == 1
    index.apply(source, WHOLE)
    assert index.stats().full_sources == {source}
    index.apply(source, batch(cleared()))
    assert index.stats().full_sources == frozenset()


def test_a_full_source_still_counts_copies_and_removals(new_index: NewIndex) -> None:
    index = new_index(max_bytes=2 * size_of_one_block(new_index))
    source = index.add_source("m")
    index.apply(source, WHOLE)
    assert index.apply(source, batch(stored([1, 2], PROMPT[:8]))).stored == 2
    index.apply(source, batch(removed([2])))
    assert index.match("m", PROMPT) == {source: 2}
    index.apply(source, batch(removed([2])))
    assert index.match("m", PROMPT) == {source: 1}


def test_the_limit_is_of_the_whole_index_and_full_is_each_sources_own(
    new_index: NewIndex,
) -> None:
    index = new_index(max_bytes=4 * size_of_one_block(new_index))
    one, other = index.add_source("m"), index.add_source("m")
    index.apply(one, WHOLE)
    assert index.stats().full_sources == frozenset()
    index.apply(other, WHOLE)
    assert index.stats().full_sources == {other}
    assert index.match("m", PROMPT) == {one: 4}
    index.remove_source(one)
    assert index.stats().full_sources == {other}


def test_orphans_take_room_too(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    size = index.stats().bytes
    assert size > 0
    limited = new_index(max_bytes=size)
    source = limited.add_source("m")
    applied = limited.apply(source, batch(stored([2, 3], PROMPT[4:12], parent=1)))
    assert (applied.parked, applied.skipped) == (1, {"full": 1})
    assert limited.stats().full_sources == {source}


def test_a_large_event_fills_the_index_to_the_last_block(new_index: NewIndex) -> None:
    """The room is counted anew within an event: shared blocks take less than new ones."""
    one_block = size_of_one_block(new_index)
    index = new_index(max_bytes=1000 * one_block)
    one, other = index.add_source("m"), index.add_source("m")
    tokens = [t for n in range(700) for t in (n, n, n, n)]
    index.apply(one, batch(stored(range(700), tokens)))
    applied = index.apply(other, batch(stored(range(700), tokens)))
    room = 1000 * one_block - index.stats().bytes
    assert applied.stored < 700
    assert 0 <= room < one_block
    assert index.match("m", tokens)[other] == applied.stored


def test_stats_of_an_index_at_work(new_index: NewIndex) -> None:
    index = new_index()
    one, other = index.add_source("m"), index.add_source("m")
    index.apply(one, WHOLE)
    index.apply(one, batch(stored([1], PROMPT[:4], medium="CPU")))
    index.apply(other, batch(stored(HASHES[:2], PROMPT[:8]), stored(HASHES[:2], PROMPT[:8])))
    index.apply(other, batch(stored([9], PROMPT[:4], parent=8)))
    stats = index.stats()
    assert stats.sources == 2
    assert stats.blocks == 4
    assert stats.placements == 9
    assert stats.orphans == 1
    assert stats.by_medium == {"GPU": 8, "CPU": 1}
    assert stats.per_source == {one: 4, other: 4}
    assert stats.full_sources == frozenset()
