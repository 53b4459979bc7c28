"""Adapters and extras: what belongs to a block's key beside its tokens."""

import msgspec
import pytest

from tests.backends import NewIndex
from tests.events import batch, sglang, stored

PROMPT = list(range(8))


def test_an_adapters_blocks_match_its_requests_alone(new_index: NewIndex) -> None:
    index = new_index()
    base, adapted = index.add_source("m"), index.add_source("m")
    index.apply(base, batch(stored([1, 2], PROMPT)))
    index.apply(adapted, batch(stored([1, 2], PROMPT, lora_id=1, lora_name="ad")))
    assert index.match("m", PROMPT) == {base: 2}
    assert index.match("m", PROMPT, lora="ad") == {adapted: 2}
    assert index.match("m", PROMPT, lora="other") == {}


def test_one_source_holds_base_and_adapter_apart(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT), stored([3], PROMPT[:4], lora_name="ad")))
    assert index.match("m", PROMPT) == {source: 2}
    assert index.match("m", PROMPT, lora="ad") == {source: 1}


def test_the_adapters_name_leads_the_extra_keys_and_is_no_extra(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    extra = [["ad"], ["ad"]]
    index.apply(source, batch(stored([1, 2], PROMPT, lora_name="ad", extra_keys=extra)))
    assert index.match("m", PROMPT, lora="ad") == {source: 2}


def test_only_one_leading_name_is_left_out(new_index: NewIndex) -> None:
    """A tenant may choose an adapter's name for its salt."""
    index = new_index()
    source = index.add_source("m")
    extra = [["ad", "ad"], ["ad"]]
    index.apply(source, batch(stored([1, 2], PROMPT, lora_name="ad", extra_keys=extra)))
    assert index.match("m", PROMPT, lora="ad", cache_salt="ad") == {source: 2}
    assert index.match("m", PROMPT, lora="ad") == {}


def test_a_name_that_is_no_adapter_of_the_event_is_an_extra(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT, extra_keys=[["ad"], None])))
    assert index.match("m", PROMPT) == {}
    assert index.match("m", PROMPT, lora="ad") == {}
    assert index.match("m", PROMPT, cache_salt="ad") == {source: 2}


def test_an_id_means_the_name_that_the_source_was_given_for_it(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m", lora_id=1, lora_name="ad")
    applied = index.apply(source, batch(stored([1, 2], PROMPT, lora_id=1), version="0.10.2"))
    assert not applied.skipped
    assert index.match("m", PROMPT, lora="ad") == {source: 2}
    assert index.match("m", PROMPT) == {}


def test_the_events_own_name_rules_over_the_sources(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m", lora_id=1, lora_name="ad")
    index.apply(source, batch(stored([1, 2], PROMPT, lora_id=1, lora_name="new")))
    assert index.match("m", PROMPT, lora="new") == {source: 2}
    assert index.match("m", PROMPT, lora="ad") == {}


@pytest.mark.parametrize("known", [{}, {"lora_id": 2, "lora_name": "ad"}, {"lora_id": 1}])
def test_an_id_without_a_name_matches_nothing_and_is_counted(
    new_index: NewIndex, known: dict[str, object]
) -> None:
    index = new_index()
    source = index.add_source("m", **known)
    applied = index.apply(source, batch(stored([1, 2], PROMPT, lora_id=1), version="0.10.2"))
    assert applied.skipped == {"unnamed_adapter": 1}
    assert (applied.stored, applied.lossy) == (2, False)
    for lora in (None, "ad", "1", ""):
        assert index.match("m", PROMPT, lora=lora) == {}
    assert index.stats().placements == 2


def test_two_ids_without_a_name_are_kept_apart(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    events = [stored([i], PROMPT[:4], lora_id=i) for i in (1, 2)]
    index.apply(source, batch(*events, version="0.10.2"))
    assert index.stats().blocks == 2


# -- salts and media ------------------------------------------------------------------------


def test_a_salt_matches_itself_alone(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT, extra_keys=[["tenant-a"], None])))
    assert index.match("m", PROMPT, cache_salt="tenant-a") == {source: 2}
    assert index.match("m", PROMPT, cache_salt="tenant-b") == {}
    assert index.match("m", PROMPT) == {}


def test_a_salt_counts_in_block_0_and_colours_what_follows(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4], extra_keys=[["tenant-a"]])))
    index.apply(source, batch(stored([2], PROMPT[4:], parent=1, extra_keys=[None])))
    assert index.match("m", PROMPT, cache_salt="tenant-a") == {source: 2}
    assert index.match("m", PROMPT) == {}


@pytest.mark.parametrize("extra_keys", [None, [None, None], [[], None], [[], []]])
def test_no_extras_are_no_extras_however_they_are_written(
    new_index: NewIndex, extra_keys: list[object] | None
) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT, extra_keys=extra_keys)))
    assert index.match("m", PROMPT) == {source: 2}


@pytest.mark.parametrize(
    "media", [["mm-hash"], [["mm-hash", -2]], [b"embedding"], [["a", 1], ["b", 0]], [None], [0]]
)
def test_media_match_no_request_for_text(new_index: NewIndex, media: list[object]) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT, extra_keys=[None, media])))
    assert index.match("m", PROMPT) == {source: 1}
    index.apply(source, batch(stored([3, 4], PROMPT, extra_keys=[None, media])))
    assert index.stats().blocks == 2, "the same media have the same key"


def test_media_and_salt_together_are_not_the_salt_alone(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1], PROMPT[:4], extra_keys=[[["mm", 0], "salt"]])))
    assert index.match("m", PROMPT, cache_salt="salt") == {}


@pytest.mark.parametrize(
    "extra",
    [{"a": 1}, msgspec.msgpack.Ext(5, b"x"), [[[[[[[[[1]]]]]]]]]],
    ids=["map", "ext", "deep"],
)
def test_extras_that_have_no_place_in_a_key_cost_their_event(
    new_index: NewIndex, extra: object
) -> None:
    index = new_index()
    source = index.add_source("m")
    bad = stored([1, 2], PROMPT, extra_keys=[[extra], None])
    applied = index.apply(source, batch(bad, stored([3], PROMPT[:4])))
    assert applied.skipped == {"unreadable_stored": 1}
    assert index.match("m", PROMPT) == {source: 1}


# -- SGLang ---------------------------------------------------------------------------------


def test_sglangs_salt_is_a_field(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(
        source,
        batch(
            sglang([-5], PROMPT[:4], cache_salt="s"),
            sglang([-6], PROMPT[4:], parent_block_hash=-5, cache_salt="s"),
        ),
    )
    assert index.match("m", PROMPT, cache_salt="s") == {source: 2}
    assert index.match("m", PROMPT) == {}


def test_sglang_without_a_salt_is_plain(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(sglang([-5], PROMPT[:4], cache_salt=None)))
    assert index.match("m", PROMPT) == {source: 1}


def test_sglangs_pairs_of_tokens_are_skipped(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    pairs = sglang([-5], [[0, 1], [1, 2], [2, 3], [3, 4]])
    applied = index.apply(source, batch(pairs, sglang([-6], PROMPT[:4])))
    assert applied.skipped == {"unreadable_stored": 1}
    assert index.match("m", PROMPT) == {source: 1}


def test_sglangs_other_media_are_kept_apart(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m")
    for medium in ("CPU_PINNED", "DISK"):
        index.apply(source, batch(sglang([-5], PROMPT[:4], medium=medium)))
    assert index.match("m", PROMPT) == {}
    assert index.stats().by_medium == {"CPU_PINNED": 1, "DISK": 1}
