"""Media and cache groups: which copies count for depth, and what a removal reaches."""

import pytest

from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored

PROMPT = list(range(12))
FULL = "full_attention"
WINDOW = "sliding_window"


# -- media ----------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", ["GPU", None])
def test_gpu_or_no_medium_counts(new_index: NewIndex, medium: str | None) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4], medium=medium)))
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(removed([1], medium="GPU" if medium is None else None)))
    assert index.match("m", PROMPT) == {}


@pytest.mark.parametrize("medium", ["CPU", "CPU_PINNED", "DISK", "gpu", ""])
def test_other_media_are_shown_and_do_not_count(new_index: NewIndex, medium: str) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([1, 2], PROMPT[:8], medium=medium)))
    assert (applied.stored, applied.skipped) == (2, {})
    assert index.match("m", PROMPT) == {}
    stats = index.stats()
    assert (stats.by_medium, stats.placements, stats.per_source) == ({medium: 2}, 2, {source: 0})
    assert index.block_size(source) is None


def test_a_removal_on_the_cpu_leaves_the_gpus_copy_and_the_reverse(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    both = [stored([1, 2], PROMPT[:8], medium=medium) for medium in ("GPU", "CPU")]
    index.apply(source, batch(*both))
    assert index.apply(source, batch(removed([2], medium="CPU"))).removed == 1
    assert index.match("m", PROMPT) == {source: 2}
    assert index.apply(source, batch(removed([1], medium="GPU"))).removed == 1
    assert index.match("m", PROMPT) == {}
    assert index.stats().by_medium == {"GPU": 1, "CPU": 1}


def test_a_child_on_the_gpu_may_have_its_parent_on_the_cpu(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4], medium="CPU")))
    applied = index.apply(source, batch(stored([2], PROMPT[4:8], parent=1)))
    assert (applied.stored, applied.parked) == (1, 0)
    assert index.match("m", PROMPT) == {}, "block 0 is not on the GPU: a hole"
    index.apply(source, batch(stored([1], PROMPT[:4])))
    assert index.match("m", PROMPT) == {source: 2}


def test_a_hash_keeps_its_meaning_while_any_medium_holds_it(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    both = [stored([1], PROMPT[:4], medium=medium) for medium in ("GPU", "CPU")]
    index.apply(source, batch(*both, removed([1], medium="GPU")))
    assert index.apply(source, batch(stored([2], PROMPT[4:8], parent=1))).stored == 1
    index.apply(source, batch(removed([1], medium="CPU")))
    assert index.apply(source, batch(stored([3], PROMPT[4:8], parent=1))).parked == 1


def test_a_source_can_not_name_media_without_end(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    events = [stored([n], PROMPT[:4], medium=f"medium {n}") for n in range(100)]
    applied = index.apply(source, batch(*events))
    assert applied.stored == 64
    assert applied.skipped == {"group_not_indexed": 36}


# -- groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_a_group_that_keeps_every_block_is_indexed(new_index: NewIndex, kind: str) -> None:
    index = new_index()
    source = index.add_source("m")
    event = stored([1], PROMPT[:4], group_idx=3, kv_cache_spec_kind=kind)
    assert index.apply(source, batch(event)).stored == 1
    assert index.match("m", PROMPT) == {source: 1}


@pytest.mark.parametrize("kind", [WINDOW, "mamba", "chunked_local_attention", "new_kind", ""])
def test_a_group_of_another_kind_is_not(new_index: NewIndex, kind: str) -> None:
    index = new_index()
    source = index.add_source("m")
    event = stored([1], PROMPT[:4], group_idx=0, kv_cache_spec_kind=kind)
    applied = index.apply(source, batch(event))
    assert applied.skipped == {"group_not_indexed": 1}
    assert index.match("m", PROMPT) == {}
    assert index.stats().placements == 0


@pytest.mark.parametrize(("group", "counts"), [(None, True), (0, True), (1, False), (7, False)])
def test_a_group_without_a_kind_counts_only_if_it_is_0(
    new_index: NewIndex, group: int | None, counts: bool
) -> None:
    index = new_index()
    source = index.add_source("m")
    applied = index.apply(source, batch(stored([1], PROMPT[:4], group_idx=group), version="0.20"))
    assert applied.skipped == ({} if counts else {"group_not_indexed": 1})
    assert index.match("m", PROMPT) == ({source: 1} if counts else {})


def test_a_groups_kind_is_remembered(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    named = stored([1], PROMPT[:4], group_idx=1, kv_cache_spec_kind=FULL)
    index.apply(source, batch(named, stored([2], PROMPT[4:8], parent=1, group_idx=1)))
    assert index.match("m", PROMPT) == {source: 2}
    window = stored([5], [], block_size=0, group_idx=0, kv_cache_spec_kind=WINDOW)
    index.apply(source, batch(window, cleared()))
    applied = index.apply(source, batch(stored([9], PROMPT[:4], group_idx=0)))
    assert applied.skipped == {"group_not_indexed": 1}, "told by a placeholder, before the clear"


def test_clearing_the_source_forgets_the_kinds(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4], group_idx=0, kv_cache_spec_kind=WINDOW)))
    index.clear_source(source)
    assert index.apply(source, batch(stored([1], PROMPT[:4], group_idx=0))).stored == 1


def test_of_several_indexable_groups_the_lowest_counts(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    in_group = {"kv_cache_spec_kind": FULL}
    index.apply(source, batch(stored([1, 2, 3], PROMPT, group_idx=2, **in_group)))
    assert index.match("m", PROMPT) == {source: 3}
    index.apply(source, batch(stored([1], PROMPT[:4], group_idx=1, **in_group)))
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(removed([1], group_idx=1)))
    assert index.match("m", PROMPT) == {}, "group 1 goes on counting while it is empty"
    index.apply(source, batch(cleared(), stored([1, 2], PROMPT[:8], group_idx=2, **in_group)))
    assert index.match("m", PROMPT) == {}, "and after AllBlocksCleared"
    index.clear_source(source)
    index.apply(source, batch(stored([1, 2], PROMPT[:8], group_idx=2, **in_group)))
    assert index.match("m", PROMPT) == {source: 2}, "until the source is cleared"


def test_a_removal_names_only_the_group(new_index: NewIndex) -> None:
    """One hash comes from a full and from a windowed group; the window's removals are its own."""
    index = new_index()
    source = index.add_source("m")
    events = [
        stored([1, 2], PROMPT[:8], group_idx=group, kv_cache_spec_kind=kind)
        for group, kind in ((0, WINDOW), (1, FULL))
    ]
    index.apply(source, batch(*events))
    assert index.match("m", PROMPT) == {source: 2}
    applied = index.apply(source, batch(removed([1, 2], group_idx=0)))
    assert (applied.removed, applied.skipped, applied.lossy) == (0, {}, False)
    assert index.match("m", PROMPT) == {source: 2}
    index.apply(source, batch(removed([1], group_idx=1)))
    assert index.match("m", PROMPT) == {}


def test_copies_are_counted_within_a_group(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    one, two = (
        stored([1], PROMPT[:4], group_idx=group, kv_cache_spec_kind=FULL) for group in (0, 1)
    )
    index.apply(source, batch(one, one, two))
    index.apply(source, batch(removed([1], group_idx=1), removed([1], group_idx=1)))
    index.apply(source, batch(removed([1], group_idx=0)))
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(removed([1], group_idx=0)))
    assert index.match("m", PROMPT) == {}


def test_no_group_is_group_0(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4])))
    index.apply(source, batch(removed([1], group_idx=0)))
    assert index.match("m", PROMPT) == {}


@pytest.mark.parametrize("group", [-1, 64, 2**40])
def test_groups_have_small_numbers(new_index: NewIndex, group: int) -> None:
    index = new_index()
    source = index.add_source("m")
    event = stored([1], PROMPT[:4], group_idx=group, kv_cache_spec_kind=FULL)
    assert index.apply(source, batch(event)).skipped == {"group_not_indexed": 1}
    assert not index.apply(source, batch(removed([1], group_idx=group))).lossy


def test_the_block_size_is_that_of_the_group_that_counts(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    in_group = {"kv_cache_spec_kind": FULL}
    index.apply(source, batch(stored([1], PROMPT[:8], block_size=8, group_idx=1, **in_group)))
    assert index.block_size(source) == 8
    index.apply(source, batch(stored([2], PROMPT[:4], block_size=4, group_idx=0, **in_group)))
    index.apply(source, batch(stored([1], PROMPT[:8], block_size=8, group_idx=1, **in_group)))
    assert index.block_size(source) == 4
    assert index.match("m", PROMPT) == {source: 1}
