"""The block manager, rule by rule, and against a second, naive account of its events."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibrix_extproc.fakes.blocks import Adapter, BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import AllBlocksCleared, BlockRemoved, BlockStored, Event

SIZE = 4


def manager(blocks: int = 16, unhashed_first: bool = True) -> BlockManager:
    return BlockManager(blocks, SIZE, BlockHasher(seed=1), unhashed_first)


def prompt(length: int, start: int = 100) -> list[int]:
    return list(range(start, start + length))


def prefill(blocks: BlockManager, tokens: list[int], **kwargs: object) -> CachedSequence:
    """Admit a whole prompt; the sequence keeps its blocks."""
    sequence = CachedSequence(list(tokens), **kwargs)  # type: ignore[arg-type]
    reused = blocks.reusable(sequence)
    assert blocks.allocate(sequence, len(tokens) - len(reused) * SIZE, reused)
    return sequence


def reused_tokens(blocks: BlockManager, tokens: list[int], **kwargs: object) -> int:
    return len(blocks.reusable(CachedSequence(list(tokens), **kwargs))) * SIZE  # type: ignore[arg-type]


def stored(events: list[Event]) -> list[BlockStored]:
    return [event for event in events if isinstance(event, BlockStored)]


def removed(events: list[Event]) -> list[BlockRemoved]:
    return [event for event in events if isinstance(event, BlockRemoved)]


# -- what is announced ---------------------------------------------------------------------------
def test_a_prompt_is_announced_in_one_event_without_its_incomplete_tail() -> None:
    blocks = manager()
    sequence = prefill(blocks, prompt(11))
    (event,) = stored(blocks.take_events())
    assert len(event.block_hashes) == 2
    assert event.token_ids == prompt(8)
    assert event.parent_block_hash is None
    assert (event.block_size, event.medium, event.group_idx) == (SIZE, "GPU", 0)
    assert event.extra_keys == [None, None]
    assert len(sequence.blocks) == 3


def test_each_chunk_of_a_long_prompt_is_an_event_chained_to_the_one_before() -> None:
    blocks = manager()
    sequence = CachedSequence(prompt(14))
    for chunk in (6, 6, 2):
        assert blocks.allocate(sequence, chunk)
    first, second = stored(blocks.take_events())
    assert [len(event.block_hashes) for event in (first, second)] == [1, 2]
    assert second.parent_block_hash == first.block_hashes[-1]
    assert [*first.token_ids, *second.token_ids] == prompt(12)


def test_an_answer_is_announced_block_by_block_when_it_fills_them() -> None:
    blocks = manager()
    sequence = prefill(blocks, prompt(6))
    (first,) = stored(blocks.take_events())
    sequence.tokens += [7, 8, 9]
    assert blocks.allocate(sequence, 1)
    assert blocks.take_events() == []
    assert blocks.allocate(sequence, 1)
    (event,) = stored(blocks.take_events())
    assert event.token_ids == [104, 105, 7, 8]
    assert event.parent_block_hash == first.block_hashes[-1]


def test_a_hit_announces_only_what_is_new() -> None:
    blocks = manager()
    blocks.release(prefill(blocks, prompt(8)))
    (first,) = stored(blocks.take_events())
    prefill(blocks, [*prompt(8), 1, 2, 3, 4, 5])
    (event,) = stored(blocks.take_events())
    assert event.token_ids == [1, 2, 3, 4]
    assert event.parent_block_hash == first.block_hashes[-1]


def test_a_full_report_announces_the_hit_again_from_block_0() -> None:
    blocks = manager()
    blocks.release(prefill(blocks, prompt(9)))
    (first,) = stored(blocks.take_events())
    prefill(blocks, prompt(9), report_hits=True)
    (event,) = stored(blocks.take_events())
    assert event.block_hashes == first.block_hashes
    assert event.parent_block_hash is None
    assert blocks.copies(first.block_hashes[0]) == 1


def test_adapter_and_salt_are_extras_the_salt_in_block_0_alone() -> None:
    blocks = manager()
    prefill(blocks, prompt(8), adapter=Adapter("ad", 2), cache_salt="tenant", session_id="s")
    (event,) = stored(blocks.take_events())
    assert event.extra_keys == [("ad", "tenant"), ("ad",)]
    assert (event.lora_id, event.lora_name, event.session_id) == (2, "ad", "s")


# -- what is reused ------------------------------------------------------------------------------
@pytest.mark.parametrize(("length", "reused"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (11, 8)])
def test_the_last_token_of_a_prompt_is_always_computed(length: int, reused: int) -> None:
    blocks = manager()
    blocks.release(prefill(blocks, prompt(12)))
    assert reused_tokens(blocks, prompt(length)) == reused


def test_a_hole_ends_the_reusable_prefix() -> None:
    blocks = manager(blocks=5)
    blocks.release(prefill(blocks, prompt(16)))
    other = prefill(blocks, prompt(4, start=500))
    assert len(removed(blocks.take_events())) == 1
    blocks.release(other)
    assert reused_tokens(blocks, prompt(17)) == 12


@pytest.mark.parametrize(
    "other",
    [{"adapter": Adapter("ad", 1)}, {"cache_salt": "tenant"}, {"adapter": Adapter("ed", 2)}],
)
def test_another_adapter_or_salt_shares_nothing(other: dict[str, object]) -> None:
    blocks = manager()
    blocks.release(prefill(blocks, prompt(9), adapter=Adapter("da", 3)))
    assert reused_tokens(blocks, prompt(9), **other) == 0
    assert reused_tokens(blocks, prompt(9), adapter=Adapter("da", 3)) == 8


def test_running_requests_share_the_blocks_of_a_common_prefix() -> None:
    blocks = manager()
    first = prefill(blocks, prompt(9))
    used = blocks.used_blocks
    second = prefill(blocks, prompt(10))
    assert blocks.used_blocks == used + 1
    assert second.blocks[:2] == first.blocks[:2]
    blocks.release(first)
    assert reused_tokens(blocks, prompt(9)) == 8
    assert blocks.used_blocks == 3


def test_a_repeat_of_an_exact_multiple_stores_its_last_block_a_second_time() -> None:
    blocks = manager()
    for _ in range(2):
        blocks.release(prefill(blocks, prompt(8)))
    first, again = stored(blocks.take_events())
    assert again.block_hashes == [first.block_hashes[1]]
    assert blocks.copies(first.block_hashes[1]) == 2
    assert blocks.copies(first.block_hashes[0]) == 1


def test_each_copy_is_removed_on_its_own_and_the_other_stays_readable() -> None:
    blocks = manager(blocks=6)
    for _ in range(2):
        blocks.release(prefill(blocks, prompt(8)))
    last = stored(blocks.take_events())[0].block_hashes[1]
    other = prefill(blocks, prompt(12, start=500))
    assert [event.block_hashes for event in removed(blocks.take_events())] == [[last]]
    assert blocks.copies(last) == 1
    assert reused_tokens(blocks, prompt(9)) == 8
    blocks.release(other)


# -- what goes -----------------------------------------------------------------------------------
def test_eviction_takes_the_tail_of_the_oldest_request_first() -> None:
    blocks = manager(blocks=7)
    blocks.release(prefill(blocks, prompt(12)))
    blocks.release(prefill(blocks, prompt(12, start=500)))
    old, young = stored(blocks.take_events())
    prefill(blocks, prompt(16, start=900))
    gone = [event.block_hashes[0] for event in removed(blocks.take_events())]
    assert gone == [*reversed(old.block_hashes), young.block_hashes[-1]]


def test_a_removal_stands_before_the_block_that_took_its_place() -> None:
    blocks = manager(blocks=3)
    blocks.release(prefill(blocks, prompt(8)))
    blocks.take_events()
    prefill(blocks, prompt(8, start=500))
    assert [type(event) for event in blocks.take_events()] == [
        BlockRemoved,
        BlockRemoved,
        BlockStored,
    ]


def test_a_reused_block_is_young_again() -> None:
    blocks = manager(blocks=5)
    blocks.release(prefill(blocks, prompt(8)))
    blocks.release(prefill(blocks, prompt(8, start=500)))
    blocks.release(prefill(blocks, prompt(5)))
    blocks.take_events()
    prefill(blocks, prompt(12, start=900))
    assert reused_tokens(blocks, prompt(9)) == 4


@pytest.mark.parametrize(("unhashed_first", "evicted"), [(True, 0), (False, 1)])
def test_since_0_24_an_incomplete_block_is_taken_before_a_readable_one(
    unhashed_first: bool, evicted: int
) -> None:
    blocks = manager(blocks=5, unhashed_first=unhashed_first)
    blocks.release(prefill(blocks, prompt(8)))
    blocks.release(prefill(blocks, prompt(7, start=500)))
    blocks.take_events()
    prefill(blocks, prompt(3, start=900))
    assert len(removed(blocks.take_events())) == evicted


def test_what_does_not_fit_changes_nothing() -> None:
    blocks = manager(blocks=5)
    held = prefill(blocks, prompt(8))
    blocks.take_events()
    late = CachedSequence(prompt(12, start=500))
    assert not blocks.allocate(late, 12)
    assert (late.blocks, blocks.take_events(), blocks.used_blocks) == ([], [], 2)
    blocks.release(held)
    assert blocks.allocate(late, 12)


def test_blocks_to_revive_count_as_taken() -> None:
    blocks = manager(blocks=4)
    blocks.release(prefill(blocks, prompt(9)))
    sequence = CachedSequence(prompt(20))
    reused = blocks.reusable(sequence)
    assert len(reused) == 2
    assert not blocks.allocate(sequence, 12, reused)
    assert blocks.free_blocks == 3


def test_a_reset_forgets_all_and_says_so_once() -> None:
    blocks = manager()
    sequence = prefill(blocks, prompt(9))
    blocks.take_events()
    assert not blocks.reset()
    assert blocks.take_events() == []
    blocks.release(sequence)
    assert blocks.reset()
    assert blocks.take_events() == [AllBlocksCleared()]
    assert reused_tokens(blocks, prompt(9)) == 0
    prefill(blocks, prompt(60))
    assert removed(blocks.take_events()) == []


# -- hashes --------------------------------------------------------------------------------------
def test_hashes_are_an_engine_s_own() -> None:
    one, other = BlockHasher(1), BlockHasher(2)
    assert one.hash(None, [1, 2], ()) == BlockHasher(1).hash(None, [1, 2], ())
    assert one.hash(None, [1, 2], ()) != other.hash(None, [1, 2], ())


def test_a_hash_depends_on_parent_tokens_and_extras() -> None:
    hasher = BlockHasher(1)
    hashes = {
        hasher.hash(None, [1, 2], ()),
        hasher.hash(7, [1, 2], ()),
        hasher.hash(None, [1, 3], ()),
        hasher.hash(None, [1, 2], ("a",)),
        hasher.hash(None, [1, 2], ("a", "b")),
    }
    assert len(hashes) == 5


def test_hashes_have_the_form_of_the_wire() -> None:
    long = BlockHasher(1, hash_bytes=32).hash(None, [1], ())
    assert isinstance(long, bytes)
    assert len(long) == 32
    signed = [BlockHasher(1, signed=True).hash(None, [n], ()) for n in range(64)]
    unsigned = [BlockHasher(1).hash(None, [n], ()) for n in range(64)]
    assert any(isinstance(value, int) and value < 0 for value in signed)
    assert all(isinstance(value, int) and 0 <= value < 2**64 for value in unsigned)
    with pytest.raises(ValueError):
        BlockHasher(1, hash_bytes=20)


# -- against a naive account -----------------------------------------------------------------------
class NaiveIndex:
    """Counts the copies of each hash, and knows each hash's tokens and parent from the events."""

    def __init__(self) -> None:
        self.copies: Counter[object] = Counter()
        self.names: dict[tuple[object, ...], object] = {}

    def apply(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, BlockStored):
                parent = event.parent_block_hash
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                assert event.extra_keys is not None
                for index, name in enumerate(event.block_hashes):
                    tokens = tuple(event.token_ids[index * SIZE : (index + 1) * SIZE])
                    extras = tuple(event.extra_keys[index] or ())
                    self.names[(parent, tokens, extras)] = name
                    self.copies[name] += 1
                    parent = name
            elif isinstance(event, BlockRemoved):
                for name in event.block_hashes:
                    self.copies[name] -= 1
                    assert self.copies[name] >= 0
            else:
                self.copies.clear()

    def cached_tokens(self, sequence: CachedSequence) -> int:
        depth, parent = 0, None
        for index in range((len(sequence.tokens) - 1) // SIZE):
            tokens = tuple(sequence.tokens[index * SIZE : (index + 1) * SIZE])
            name = self.names.get((parent, tokens, sequence.extras(index)))
            if name is None or not self.copies[name]:
                break
            depth, parent = depth + 1, name
        return depth * SIZE


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("start"),
            st.lists(st.integers(0, 1), min_size=1, max_size=20),
            st.sampled_from([(), (Adapter("ad", 1), None), (None, "salt"), (None, "other")]),
            st.integers(1, 20),
        ),
        st.tuples(st.just("decode"), st.integers(0, 9), st.integers(1, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("reset")),
    ),
    max_size=60,
)


@given(actions=ACTIONS, blocks_total=st.integers(3, 24), unhashed_first=st.booleans())
@settings(max_examples=300, deadline=None)
def test_events_always_tell_exactly_what_is_reused(
    actions: list[tuple[object, ...]], blocks_total: int, unhashed_first: bool
) -> None:
    blocks = manager(blocks_total, unhashed_first)
    index = NaiveIndex()
    running: list[CachedSequence] = []

    def check() -> None:
        index.apply(blocks.take_events())
        held = {block.index for sequence in running for block in sequence.blocks}
        assert blocks.used_blocks == len(held)
        assert blocks.free_blocks + blocks.used_blocks == blocks_total - 1
        references = Counter(b.index for sequence in running for b in sequence.blocks)
        for sequence in running:
            assert all(block.refs == references[block.index] for block in sequence.blocks)

    for action in actions:
        match action:
            case ("start", tokens, extras, chunk):
                adapter, salt = extras or (None, None)  # type: ignore[misc]
                sequence = CachedSequence(list(tokens), adapter, salt)  # type: ignore[call-overload, has-type]
                reused = blocks.reusable(sequence)
                assert len(reused) * SIZE == index.cached_tokens(sequence)
                missing = len(sequence.tokens) - len(reused) * SIZE
                if blocks.allocate(sequence, min(chunk, missing), reused):  # type: ignore[type-var]
                    running.append(sequence)
            case ("decode", which, count) if running:
                sequence = running[which % len(running)]  # type: ignore[operator]
                for token in range(count):  # type: ignore[call-overload]
                    if sequence.computed_tokens == len(sequence.tokens):
                        sequence.tokens.append(token % 2)
                    if not blocks.allocate(sequence, 1):
                        break
                    check()
            case ("end", which) if running:
                blocks.release(running.pop(which % len(running)))  # type: ignore[operator]
            case ("reset",):
                assert blocks.reset() == (not running)
        check()


@pytest.mark.parametrize(("blocks_total", "block_size"), [(1, 4), (8, 0)])
def test_a_cache_without_room_is_refused(blocks_total: int, block_size: int) -> None:
    with pytest.raises(ValueError):
        BlockManager(blocks_total, block_size, BlockHasher(1))
