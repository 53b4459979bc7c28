"""The index at its limits: what does not fit is left out, and what is held stays right.

The same at full size, with memory measured, is in `tests/acceptance`.
"""

import random
from dataclasses import dataclass, field

import pytest

from tests.backends import NewIndex
from tests.events import batch, cleared, removed, stored
from tests.index_histories import HISTORIES, Engine, make_prompts, next_payload

MODEL = "m"
BLOCK = 4
LIMIT_BYTES = 200_000
"""Some thousand blocks; the engines below hold more than ten times as many."""


@dataclass
class Truth:
    """An engine that says what it holds, and holds what it says."""

    prompts: list[list[int]]
    held: dict[tuple[int, int], int] = field(default_factory=dict)
    """(prompt, block) → hash."""

    def depth(self, number: int) -> int:
        depth = 0
        while (number, depth) in self.held:
            depth += 1
        return depth


def fill(index, sources: list[int], rng: random.Random) -> dict[int, Truth]:  # type: ignore[no-untyped-def]
    """Engines that announce far more than fits, and evict from the ends of what they hold."""
    truths = {}
    for source in sources:
        truth = truths[source] = Truth([])
        for number in range(60):
            tokens = [source, number, *(rng.randrange(1000) for _ in range(40 * BLOCK - 2))]
            truth.prompts.append(tokens)
            hashes = [rng.getrandbits(63) for _ in range(40)]
            truth.held |= {(number, block): name for block, name in enumerate(hashes)}
            events = [stored(hashes, tokens, block_size=BLOCK)]
            if rng.random() < 0.5:
                victim = rng.randrange(number + 1)
                depth = truth.depth(victim)
                gone = [truth.held.pop((victim, block)) for block in range(depth // 2, depth)]
                events.append(removed(list(reversed(gone))))
            index.apply(source, batch(*events))
    return truths


class TestBytes:
    def test_memory_stays_and_matching_is_right_for_what_is_held(self, new_index: NewIndex) -> None:
        rng = random.Random(3)
        index = new_index(max_bytes=LIMIT_BYTES)
        sources = [index.add_source(MODEL) for _ in range(10)]
        truths = fill(index, sources, rng)
        stats = index.stats()
        assert 0.9 * LIMIT_BYTES < stats.bytes <= LIMIT_BYTES
        assert stats.full_sources
        deep = 0
        for source, truth in truths.items():
            for number, prompt in enumerate(truth.prompts):
                found = index.match(MODEL, prompt)
                assert set(found) <= {source}
                assert found.get(source, 0) <= truth.depth(number)
                deep += found.get(source, 0) == truth.depth(number) > 0
        assert deep > 10

    def test_what_goes_makes_room_for_sources_that_are_not_full(self, new_index: NewIndex) -> None:
        index = new_index(max_bytes=LIMIT_BYTES)
        greedy, modest = index.add_source(MODEL), index.add_source(MODEL)
        prompt = [7] * 40_000
        assert index.apply(greedy, batch(stored(range(10_000), prompt))).skipped == {"full": 1}
        held = index.stats().placements
        index.apply(greedy, batch(removed(range(held // 2, held))))
        other = [9] * 400
        assert index.apply(modest, batch(stored(range(100), other))).stored == 100
        assert index.match(MODEL, other)[modest] == 100
        assert index.apply(greedy, batch(stored([20_000], prompt[:4]))).skipped == {"full": 1}
        assert index.stats().full_sources == {greedy}
        index.apply(greedy, batch(cleared()))
        assert index.apply(greedy, batch(stored([1], prompt[:4]))).stored == 1
        assert index.stats().full_sources == frozenset()

    def test_parked_blocks_count_too(self, new_index: NewIndex) -> None:
        index = new_index(max_bytes=LIMIT_BYTES)
        source = index.add_source(MODEL)
        for n in range(1000):
            index.apply(source, batch(stored([n], [n] * 400, parent=n + 5000, block_size=400)))
        assert 0.9 * LIMIT_BYTES < index.stats().bytes <= LIMIT_BYTES
        assert index.stats().full_sources == {source}

    def test_copies_pass_the_limit_by_a_note_for_each_block_and_no_more(
        self, new_index: NewIndex
    ) -> None:
        index = new_index(max_bytes=LIMIT_BYTES)
        source = index.add_source(MODEL)
        prompt = [7] * 40_000
        for _ in range(20):
            index.apply(source, batch(stored(range(10_000), prompt)))
        assert LIMIT_BYTES < index.stats().bytes < 2 * LIMIT_BYTES


@pytest.mark.parametrize("history", ["everything", "copies and holes", "nonsense"])
class TestChurn:
    def test_equal_contents_are_of_equal_size_after_any_history(
        self, new_index: NewIndex, history: str
    ) -> None:
        traits, _, _ = HISTORIES[history]
        rng = random.Random(history)
        prompts = make_prompts(rng)
        payloads = [
            [next_payload(rng, Engine(rng, traits, 4), prompts)[0] for _ in range(40)]
            for _ in range(4)
        ]

        def contents(index, sources: list[int]) -> None:  # type: ignore[no-untyped-def]
            for source, said in zip(sources, payloads, strict=True):
                for payload in said:
                    index.apply(source, payload)

        fresh = new_index(max_orphans=traits.max_orphans)
        contents(fresh, [fresh.add_source(MODEL) for _ in payloads])
        expected = fresh.stats()

        index = new_index(max_orphans=traits.max_orphans)
        for _ in range(6):
            sources = [index.add_source(rng.choice("mno")) for _ in range(5)]
            engines = [Engine(rng, traits, rng.choice(traits.sizes)) for _ in sources]
            for _ in range(100):
                at = rng.randrange(len(sources))
                index.apply(sources[at], next_payload(rng, engines[at], prompts)[0])
                if rng.random() < 0.05:
                    index.clear_source(rng.choice(sources))
            for source in sources:
                index.remove_source(source)
        assert (index.stats().bytes, index.stats().blocks) == (0, 0)
        sources = [index.add_source(MODEL) for _ in payloads]
        contents(index, sources)
        found = index.stats()
        assert found.bytes == expected.bytes
        assert found.placements == expected.placements

    def test_clearing_one_by_one_gives_all_of_it_back(
        self, new_index: NewIndex, history: str
    ) -> None:
        traits, _, _ = HISTORIES[history]
        rng = random.Random(history)
        prompts = make_prompts(rng)
        index = new_index(max_orphans=traits.max_orphans)
        sources = [index.add_source(MODEL) for _ in range(6)]
        engines = [Engine(rng, traits, 4) for _ in sources]
        for _ in range(400):
            at = rng.randrange(len(sources))
            index.apply(sources[at], next_payload(rng, engines[at], prompts)[0])
        sizes = [index.stats().bytes]
        for source in sources:
            index.clear_source(source)
            sizes.append(index.stats().bytes)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] == 0


def test_models_go_with_their_last_source(new_index: NewIndex) -> None:
    index = new_index()
    for n in range(3000):
        source = index.add_source(f"model-{n}")
        index.apply(source, batch(stored([1, 2], [n] * 8)))
        assert index.match(f"model-{n}", [n] * 8) == {source: 2}
        index.remove_source(source)
        assert index.match(f"model-{n}", [n] * 8) == {}
    stats = index.stats()
    assert (stats.sources, stats.blocks, stats.bytes) == (0, 0, 0)
