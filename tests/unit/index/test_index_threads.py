"""Threads that ask while others apply, clear and remove: no answer that was never true."""

import random
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from aibrix_extproc.index import reference
from tests.backends import NewIndex
from tests.events import TestEvent, batch, cleared, removed, stored

BLOCKS = 600
PROMPT = [token for block in range(BLOCKS + 1) for token in (block, 7)]


def first_blocks(count: int) -> TestEvent:
    """The first blocks of the prompt, two tokens each, hashes from 1."""
    return stored(range(1, count + 1), PROMPT[: 2 * count], block_size=2)


class Threads:
    """Threads whose errors fail the test that started them."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def repeat(self, work: Callable[[], object]) -> None:
        """Until the test is done."""

        def run() -> None:
            try:
                while not self.done.is_set():
                    work()
            except BaseException as error:
                self._errors.append(error)

        self.start(run)

    def once(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._errors.append(error)

        self.start(run)

    def start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self) -> None:
        self.done.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        if self._errors:
            raise self._errors[0]


@contextmanager
def threads():  # type: ignore[no-untyped-def]
    running = Threads()
    try:
        yield running
    finally:
        running.finish()


def test_a_depth_is_one_that_was_true(new_index: NewIndex) -> None:
    """The first block and the last are never there together, so the prompt never is as a whole.

    Who looks at the first, and much later at the last, must not put the two together.
    """
    index = new_index()
    source = index.add_source("m")
    last = stored([BLOCKS + 1], PROMPT[-2:], parent=BLOCKS, block_size=2)
    index.apply(source, batch(first_blocks(BLOCKS)))
    turn = [removed([1]), last, removed([BLOCKS + 1]), stored([1], PROMPT[:2], block_size=2)]
    payload = batch(*turn * 60)
    seen = set()
    with threads() as running:
        running.repeat(lambda: index.apply(source, payload))
        for _ in range(3000 if new_index is not reference.PrefixIndex else 60):
            seen.add(index.match("m", PROMPT).get(source, 0))
    assert seen <= {0, BLOCKS}
    assert index.match("m", PROMPT) == {source: BLOCKS}


def test_a_bystander_is_never_disturbed(new_index: NewIndex) -> None:
    """Its blocks are those that others store, drop, clear and lose at the same time."""
    index = new_index()
    bystander = index.add_source("m")
    index.apply(bystander, batch(first_blocks(BLOCKS)))
    whole, gone = batch(first_blocks(BLOCKS)), batch(removed(range(BLOCKS, 0, -1)))

    def churn() -> None:
        source = index.add_source("m")
        for payload in (whole, gone, whole, batch(cleared()), whole):
            index.apply(source, payload)
        index.clear_source(source)
        index.apply(source, whole)
        index.remove_source(source)

    with threads() as running:
        for _ in range(2):
            running.repeat(churn)
        for _ in range(400 if new_index is not reference.PrefixIndex else 40):
            found = index.match("m", PROMPT)
            assert found.pop(bystander) == BLOCKS
            assert all(0 < depth <= BLOCKS for depth in found.values())
            index.stats()
    assert index.match("m", PROMPT) == {bystander: BLOCKS}
    assert (index.stats().sources, index.stats().placements) == (1, BLOCKS)


def test_a_source_is_in_no_answer_once_it_was_cleared_or_removed(new_index: NewIndex) -> None:
    index = new_index()
    stays = index.add_source("m")
    index.apply(stays, batch(first_blocks(5)))
    whole = batch(first_blocks(BLOCKS))
    with threads() as running:
        running.repeat(lambda: index.match("m", PROMPT))
        for _ in range(30):
            source = index.add_source("m")
            index.apply(source, whole)
            index.clear_source(source)
            assert index.match("m", PROMPT) == {stays: 5}
            index.apply(source, whole)
            index.remove_source(source)
            assert index.match("m", PROMPT) == {stays: 5}


def test_a_clear_makes_the_rest_of_a_batch_void_or_comes_after_it(new_index: NewIndex) -> None:
    """Never a part of a batch without its beginning."""
    index = new_index()
    source = index.add_source("m")
    payload = batch(*[first_blocks(n) for n in range(1, 80)])
    with threads() as running:
        running.repeat(lambda: index.apply(source, payload))
        for _ in range(100):
            index.clear_source(source)
            assert index.match("m", PROMPT).get(source, 0) <= 79
    index.clear_source(source)
    stats = index.stats()
    assert (stats.blocks, stats.placements, stats.orphans, stats.bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_left_is_what_the_events_said(new_index: NewIndex, seed: int) -> None:
    """Four engines at once, two askers; afterwards all is as if they had spoken in turn."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(2) for _ in range(24)] for _ in range(30)]
    index, calm = new_index(max_orphans=20), reference.PrefixIndex(max_orphans=20)
    histories: dict[int, list[bytes]] = {}
    for _ in range(4):
        source = index.add_source("m")
        assert calm.add_source("m") == source
        histories[source] = history(rng, prompts)
    said: dict[int, list[Any]] = {source: [] for source in histories}

    def tell(source: int) -> None:
        for payload in histories[source]:
            said[source].append(index.apply(source, payload))

    with threads() as running:
        for source in histories:
            running.once(lambda source=source: tell(source))
        for _ in range(2):
            running.repeat(lambda: [index.match("m", prompt) for prompt in prompts])
    for source, payloads in histories.items():
        assert said[source] == [calm.apply(source, payload) for payload in payloads]
    for prompt in prompts:
        assert index.match("m", prompt) == calm.match("m", prompt)
    assert index.stats().per_source == calm.stats().per_source
    assert index.stats().blocks == calm.stats().blocks


def history(rng: random.Random, prompts: list[list[int]]) -> list[bytes]:
    payloads = []
    for _ in range(150):
        events: list[TestEvent] = []
        for _ in range(rng.randint(1, 6)):
            prompt = rng.choice(prompts)
            names = [repr(prompt[: n + 2]).encode()[-60:] for n in range(0, len(prompt), 2)]
            start = rng.choice([0, 0, 0, 3])
            parent = names[start - 1] if start else None
            kind = rng.randrange(8)
            if kind == 0:
                events.append(removed([rng.choice(names) for _ in range(3)]))
            elif kind == 1 and rng.random() < 0.1:
                events.append(cleared())
            else:
                events.append(stored(names[start:], prompt[2 * start :], parent, 2))
        payloads.append(batch(*events))
    return payloads
