"""Predictions: what was just sent counts as held, for its time and no longer."""

import random
import threading
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aibrix_extproc.routing.predictions import Predictions


def chain(*tokens: int) -> "array[int]":
    """Keys as the index makes them: each from the one before it and a block's content."""
    keys, key = array("Q"), 7
    for token in tokens:
        key = random.Random(key * 1009 + token).getrandbits(64)
        keys.append(key)
    return keys


def test_a_promise_counts_until_its_time_is_over() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3)
    predictions.promise(5, keys, 2.0, now=10.0)
    assert predictions.depth(5, keys, now=11.9) == 3
    assert predictions.depth(5, keys, now=12.0) == 0


def test_of_blocks_that_are_held_already_nothing_is_noted() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3, 4)
    predictions.promise(5, keys, 2.0, now=0.0, held=3)
    assert len(predictions) == 1
    assert predictions.depth(5, keys, now=1.0, start=3) == 4
    assert predictions.depth(5, keys, now=1.0, start=2) == 2, "what is held is not known from here"
    predictions.promise(6, keys, 2.0, now=0.0, held=4)
    assert len(predictions) == 1


def test_a_promise_is_for_its_source_alone() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2)
    predictions.promise(5, keys, 2.0, now=0.0)
    assert predictions.depth(6, keys, now=0.0) == 0
    assert predictions.depths(keys, None, now=0.0) == {5: 2}


def test_another_prompt_shares_the_blocks_up_to_where_it_parts() -> None:
    predictions = Predictions(100)
    predictions.promise(5, chain(1, 2, 3, 4), 2.0, now=0.0)
    assert predictions.depth(5, chain(1, 2, 9, 4), now=0.0) == 2
    assert predictions.depth(5, chain(9, 2, 3, 4), now=0.0) == 0
    assert predictions.depth(5, chain(1, 2, 3, 4, 5), now=0.0) == 4


def test_a_renewed_promise_lasts_longer() -> None:
    predictions = Predictions(100)
    predictions.promise(5, chain(1, 2, 3), 2.0, now=0.0)
    predictions.promise(5, chain(1, 2), 2.0, now=1.0)
    assert predictions.depth(5, chain(1, 2, 3), now=2.5) == 2
    assert len(predictions) == 3


def test_what_the_index_knows_is_continued_by_what_is_predicted() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3, 4)
    predictions.promise(5, keys[:3], 2.0, now=0.0)
    assert predictions.depth(5, keys, now=0.0, start=2) == 3
    assert predictions.depth(5, keys, now=0.0, start=3) == 3
    assert predictions.depth(5, keys, now=0.0, start=4) == 4


def test_depths_names_only_the_sources_that_gain() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3, 4)
    for source, blocks in ((1, 2), (2, 4), (3, 1)):
        predictions.promise(source, keys[:blocks], 2.0, now=0.0)
    assert predictions.depths(keys, {1: 2, 2: 1}, now=0.0) == {2: 4, 3: 1}
    assert predictions.depths(keys, {}, now=2.0) == {}


def test_a_dropped_source_holds_nothing_and_can_start_again() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3)
    predictions.promise(5, keys, 2.0, now=0.0)
    predictions.promise(6, keys, 2.0, now=0.0)
    predictions.drop(5)
    assert predictions.depths(keys, None, now=0.0) == {6: 3}
    predictions.promise(5, keys[:1], 2.0, now=0.0)
    assert predictions.depth(5, keys, now=0.0) == 1


def test_dropping_an_unknown_source_is_harmless() -> None:
    Predictions(100).drop(5)


def test_a_full_map_lets_the_oldest_promise_go_deepest_block_first() -> None:
    predictions = Predictions(5)
    assert predictions.promise(1, chain(1, 2, 3), 600.0, now=0.0) == 0
    assert predictions.promise(2, chain(1, 2, 3, 4), 2.0, now=1.0) == 2
    assert len(predictions) == 5
    assert predictions.depth(1, chain(1, 2, 3), now=1.0) == 1
    assert predictions.depth(2, chain(1, 2, 3, 4), now=1.0) == 4


def test_the_oldest_promise_goes_first_whatever_its_time_to_live() -> None:
    predictions = Predictions(4)
    for second, (source, ttl_s) in enumerate([(1, 600.0), (2, 20.0), (1, 600.0), (2, 20.0)]):
        predictions.promise(source, chain(second), ttl_s, now=float(second))
    assert predictions.promise(3, chain(7, 8), 600.0, now=4.0) == 2
    left = {s: predictions.depth(1 + s % 2, chain(s), now=4.0) for s in range(4)}
    assert left == {0: 0, 1: 0, 2: 1, 3: 1}


def test_a_source_whose_time_to_live_changes_starts_anew() -> None:
    predictions = Predictions(100)
    predictions.promise(5, chain(1, 2, 3), 600.0, now=0.0)
    predictions.promise(5, chain(1), 2.0, now=1.0)
    assert predictions.depth(5, chain(1, 2, 3), now=1.0) == 1
    assert predictions.depth(5, chain(1, 2, 3), now=3.0) == 0
    predictions.promise(6, chain(9), 600.0, now=3.0)
    predictions.promise(5, chain(8), 2.0, now=5.0)
    assert len(predictions) == 3 + 1 + 1  # what lasted 2 s is gone, the rest waits its 600


def test_a_long_promise_keeps_its_head() -> None:
    predictions = Predictions(2)
    predictions.promise(1, chain(1, 2, 3, 4), 2.0, now=0.0)
    assert predictions.depth(1, chain(1, 2, 3, 4), now=0.0) == 2
    assert len(predictions) == 2


def test_expired_blocks_go_before_those_that_are_alive() -> None:
    predictions = Predictions(4)
    predictions.promise(1, chain(1, 2), 600.0, now=0.0)
    predictions.promise(2, chain(1, 2), 2.0, now=1.0)
    assert predictions.promise(2, chain(8, 9), 2.0, now=5.0) == 0
    assert predictions.depth(1, chain(1, 2), now=5.0) == 2


@pytest.mark.parametrize(("max_blocks", "ttl_s"), [(0, 2.0), (10, 0.0)])
def test_without_room_or_time_nothing_is_predicted(max_blocks: int, ttl_s: float) -> None:
    predictions = Predictions(max_blocks)
    assert predictions.promise(1, chain(1), ttl_s, now=0.0) == 0
    assert len(predictions) == 0
    assert predictions.depth(1, chain(1), now=0.0) == 0


def test_an_empty_prompt_promises_nothing() -> None:
    predictions = Predictions(10)
    predictions.promise(1, array("Q"), 2.0, now=0.0)
    assert predictions.depths(array("Q"), None, now=0.0) == {}


def test_memory_of_expired_promises_is_given_back() -> None:
    predictions = Predictions(100_000)
    for second in range(1000):
        predictions.promise(1, chain(second, 1, 2, 3), 2.0, now=float(second))
    assert len(predictions) <= 3 * 4


def test_sources_may_be_dropped_while_others_are_promised_and_asked() -> None:
    predictions = Predictions(1000)
    keys = chain(1, 2, 3)
    stop = threading.Event()

    def clear_all() -> None:
        while not stop.is_set():
            for source in range(20):
                predictions.drop(source)

    clearing = threading.Thread(target=clear_all)
    clearing.start()
    try:
        for step in range(3000):
            predictions.promise(step % 20, keys, 2.0, now=0.0)
            assert set(predictions.depths(keys, None, now=0.0).values()) <= {3}
    finally:
        stop.set()
        clearing.join()
    for source in range(20):
        predictions.drop(source)
    assert predictions.depths(keys, None, now=0.0) == {}


class PredictionsAgainstList(RuleBasedStateMachine):
    """An oracle that keeps every block of every promise in one list and looks at all of it."""

    MAX_BLOCKS = 12
    TTLS_S = (3.0, 20.0, 3.0, 20.0)  # by source

    def __init__(self) -> None:
        super().__init__()
        self.predictions = Predictions(self.MAX_BLOCKS)
        self.now = 0.0
        # source, key → when promised, minus its index, expiry, still valid
        self.held: dict[tuple[int, int, int], tuple[float, int, float]] = {}
        self.lives = [0, 0, 0, 0]

    tokens = st.lists(st.integers(0, 2), max_size=5)

    @rule(source=st.integers(0, 3), tokens=tokens, passes_s=st.integers(1, 6))
    def promise(self, source: int, tokens: list[int], passes_s: int) -> None:
        self.now += passes_s
        keys = chain(*tokens)
        self.predictions.promise(source, keys, self.TTLS_S[source], self.now)
        if keys:
            self.held = {k: v for k, v in self.held.items() if v[2] > self.now}
        for i, key in enumerate(keys):
            expiry = self.now + self.TTLS_S[source]
            self.held[source, self.lives[source], key] = (self.now, -i, expiry)
        for oldest in sorted(self.held, key=lambda k: self.held[k])[: -self.MAX_BLOCKS]:
            del self.held[oldest]

    @rule(source=st.integers(0, 3))
    def drop(self, source: int) -> None:
        self.predictions.drop(source)
        self.lives[source] += 1

    @rule(passes_s=st.integers(1, 6))
    def wait(self, passes_s: int) -> None:
        self.now += passes_s

    @rule(tokens=tokens, starts=st.dictionaries(st.integers(0, 3), st.integers(0, 5)))
    def ask(self, tokens: list[int], starts: dict[int, int]) -> None:
        keys = chain(*tokens)
        starts = {source: min(start, len(keys)) for source, start in starts.items()}
        expected = {}
        for source in range(4):
            depth = start = starts.get(source, 0)
            while depth < len(keys) and self.alive(source, keys[depth]):
                depth += 1
            assert self.predictions.depth(source, keys, self.now, start) == depth
            if depth > start:
                expected[source] = depth
        assert self.predictions.depths(keys, starts, self.now) == expected

    def alive(self, source: int, key: int) -> bool:
        entry = self.held.get((source, self.lives[source], key))
        return entry is not None and entry[2] > self.now

    @invariant()
    def memory_stays_within_the_bound(self) -> None:
        assert len(self.predictions) <= self.MAX_BLOCKS


PredictionsAgainstList.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestPredictionsAgainstList = PredictionsAgainstList.TestCase


def test_a_promise_that_was_not_kept_is_taken_back() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3)
    predictions.promise(5, keys, 2.0, now=0.0)
    assert predictions.withdraw(5, keys, expiry=2.0) == 3
    assert predictions.depth(5, keys, now=0.0) == 0
    assert len(predictions) == 0


def test_taking_back_leaves_what_another_promise_renewed() -> None:
    predictions = Predictions(100)
    ours, theirs = chain(1, 2, 3, 4), chain(1, 2, 9)
    predictions.promise(5, ours, 2.0, now=0.0)
    predictions.promise(5, theirs, 2.0, now=1.0)
    assert predictions.withdraw(5, ours, expiry=2.0) == 2
    assert predictions.depth(5, ours, now=1.0) == 2
    assert predictions.depth(5, theirs, now=1.0) == 3


def test_only_the_given_blocks_are_taken_back() -> None:
    predictions = Predictions(100)
    keys = chain(1, 2, 3, 4)
    predictions.promise(5, keys, 2.0, now=0.0)
    assert predictions.withdraw(5, keys[3:], expiry=2.0) == 1
    assert predictions.depth(5, keys, now=0.0) == 3


def test_taking_back_what_was_never_promised_does_nothing() -> None:
    predictions = Predictions(100)
    assert predictions.withdraw(5, chain(1), expiry=2.0) == 0
    predictions.promise(5, chain(1), 2.0, now=0.0)
    assert predictions.withdraw(5, chain(2), expiry=2.0) == 0
    assert predictions.depth(5, chain(1), now=0.0) == 1
