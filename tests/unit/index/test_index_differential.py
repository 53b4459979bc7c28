"""Both back ends through the same seeded random histories: every answer must be the same.

What the engines do is in `tests.index_histories`. After every 256 events all answers are compared:
the depths of many prompts, the size, the block sizes; and what each batch did at once.
"""

import random
from dataclasses import replace

import pytest

from aibrix_extproc import index
from aibrix_extproc.index import IndexStats, reference
from tests.backends import needs_core
from tests.index_histories import (
    ADAPTERS,
    HISTORIES,
    MODELS,
    SALTS,
    Engine,
    Traits,
    make_prompts,
    next_payload,
)

pytestmark = needs_core

COMPARE_EVERY_EVENTS = 256


class Pair:
    """The same index twice."""

    def __init__(self, rng: random.Random, traits: Traits) -> None:
        self.rng, self.traits = rng, traits
        self.both = [
            reference.PrefixIndex(max_orphans=traits.max_orphans),
            index.PrefixIndex(max_orphans=traits.max_orphans),
        ]
        self.engines: dict[int, Engine] = {}
        self.prompts = make_prompts(rng)

    def add(self) -> None:
        rng = self.rng
        lora = rng.choice([(None, None), (1, "a")])
        model = rng.choice(MODELS)
        first, second = (one.add_source(model, *lora) for one in self.both)
        assert first == second
        size = rng.choice(self.traits.sizes)
        self.engines[first] = Engine(random.Random(rng.getrandbits(64)), self.traits, size)

    def change_sources(self) -> None:
        rng = self.rng
        number = rng.choice(list(self.engines))
        if rng.random() < 0.5:
            for one in self.both:
                one.clear_source(number)
            self.engines[number].held.clear()
            return
        for one in self.both:
            one.remove_source(number)
        del self.engines[number]
        self.add()

    def step(self) -> int:
        """One batch of one source, and what both say to it; returns its events."""
        rng = self.rng
        number = rng.choice(list(self.engines))
        payload, events = next_payload(rng, self.engines[number], self.prompts)
        first, second = (one.apply(number, payload) for one in self.both)
        assert second == first, payload.hex()
        return events

    def compare(self) -> None:
        slow, fast = self.both
        for prompt in self.prompts:
            for lora in ADAPTERS if self.traits.adapters else [None]:
                for salt in SALTS if self.traits.salts else [None]:
                    for model in set(MODELS):
                        expected = slow.match(model, prompt, lora=lora, cache_salt=salt)
                        found = fast.match(model, prompt, lora=lora, cache_salt=salt)
                        assert found == expected
        assert sizeless(fast.stats()) == sizeless(slow.stats())
        for number in self.engines:
            assert fast.block_size(number) == slow.block_size(number)


def sizeless(stats: IndexStats) -> IndexStats:
    """Without `bytes`, of which each back end has its own measure."""
    return replace(stats, bytes=bool(stats.bytes))


@pytest.mark.parametrize(("traits", "sources", "events"), HISTORIES.values(), ids=HISTORIES.keys())
@pytest.mark.parametrize("seed", [1, 2])
def test_both_back_ends_answer_alike(traits: Traits, sources: int, events: int, seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair(rng, traits)
    for _ in range(sources):
        pair.add()
    done = compared = 0
    while done < events:
        done += pair.step()
        if done - compared >= COMPARE_EVERY_EVENTS:
            compared = done
            pair.compare()
            if traits.sources_change:
                pair.change_sources()
    pair.compare()
    for number in list(pair.engines):
        for one in pair.both:
            one.remove_source(number)
    assert pair.both[1].stats() == pair.both[0].stats()
