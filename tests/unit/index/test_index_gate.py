"""Who waits for whom: a request goes in after at most 256 blocks of events."""

import threading
from collections.abc import Callable

import pytest

from aibrix_extproc.index.gate import STRETCH_BLOCKS, Change, Gate
from aibrix_extproc.index.masks import ModelMasks
from aibrix_extproc.index.reference import PrefixIndex
from tests.events import batch, cleared, removed, stored
from tests.support import eventually

BLOCKS = 2000
TOKENS = [token for block in range(BLOCKS) for token in (block, block)]
BIG = stored(range(BLOCKS), TOKENS, block_size=2)
BRANCHES = [stored([-1 - n], [9, n], parent=0, block_size=2) for n in range(BLOCKS)]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -- the gate alone -------------------------------------------------------------------------


def test_a_look_that_waits_goes_in_at_the_end_of_the_stretch() -> None:
    gate, seen = Gate(), []

    def look() -> None:
        with gate.look():
            seen.append("look")

    with gate.change() as change:
        thread = in_thread(look)
        eventually(lambda: gate._looks_waiting)
        assert not seen
        change.pause()
        assert seen == ["look"]
    thread.join(10)


def test_all_looks_that_wait_go_before_the_next_stretch() -> None:
    gate, seen = Gate(), []

    def look() -> None:
        with gate.look():
            seen.append("look")

    with gate.change() as change:
        threads = [in_thread(look) for _ in range(5)]
        eventually(lambda: gate._looks_waiting == 5)
        change.pause()
        assert seen == ["look"] * 5
    for thread in threads:
        thread.join(10)


def test_a_change_that_waits_goes_after_the_looks() -> None:
    gate, seen = Gate(), []

    def change() -> None:
        with gate.change():
            seen.append("change")

    def look() -> None:
        with gate.look():
            seen.append("look")

    with gate.change():
        changing = in_thread(change)
        eventually(lambda: gate._changes_waiting)
        looking = in_thread(look)
        eventually(lambda: gate._looks_waiting)
    for thread in (changing, looking):
        thread.join(10)
    assert seen == ["look", "change"]


def test_nobody_is_in_together_with_anybody_else() -> None:
    gate, inside, worst = Gate(), [], []

    def enter() -> None:
        inside.append(1)
        worst.append(len(inside))
        inside.pop()

    def look() -> None:
        for _ in range(200):
            with gate.look():
                enter()

    def change() -> None:
        for _ in range(50):
            with gate.change() as changing:
                for _ in range(4):
                    enter()
                    changing.pause()

    threads = [in_thread(work) for work in (look, look, change, change)]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(worst) == 800
    assert set(worst) == {1}


def test_the_gate_opens_again_after_an_error() -> None:
    gate = Gate()
    for enter in (gate.look, gate.change):
        with pytest.raises(RuntimeError), enter():
            raise RuntimeError
    with gate.look():
        pass


# -- the index at the gate ------------------------------------------------------------------


@pytest.fixture
def stretches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each stretch of changes, how many times a mask was touched."""
    touched = [0]
    place, take, leave = ModelMasks.set, ModelMasks.unset, Gate.leave

    def counted_place(self, keys, bit):  # type: ignore[no-untyped-def]
        keys = list(keys)
        touched[-1] += len(keys)
        return place(self, keys, bit)

    def counted_take(self, key, bit):  # type: ignore[no-untyped-def]
        touched[-1] += 1
        return take(self, key, bit)

    def counted_leave(self):  # type: ignore[no-untyped-def]
        touched.append(0)
        return leave(self)

    monkeypatch.setattr(ModelMasks, "set", counted_place)
    monkeypatch.setattr(ModelMasks, "unset", counted_take)
    monkeypatch.setattr(Gate, "leave", counted_leave)
    return touched


ONE_BY_ONE = [
    stored([n], TOKENS[2 * n : 2 * n + 2], parent=n - 1 if n else None, block_size=2)
    for n in range(BLOCKS)
]
"""The blocks of BIG in an event each."""

FILLING = {"one large BlockStored": batch(BIG), "many small ones": batch(*ONE_BY_ONE)}
EMPTYING: dict[str, Callable[[PrefixIndex, int], object]] = {
    "one large BlockRemoved": lambda index, source: index.apply(
        source, batch(removed(range(BLOCKS)))
    ),
    "many small ones": lambda index, source: index.apply(
        source, batch(*(removed([n]) for n in range(BLOCKS)))
    ),
    "AllBlocksCleared": lambda index, source: index.apply(source, batch(cleared())),
    "clear_source": lambda index, source: index.clear_source(source),
    "remove_source": lambda index, source: index.remove_source(source),
}


def is_well_divided(stretches: list[int]) -> bool:
    """All blocks were touched, never more than a stretch of them at once."""
    return sum(stretches) == BLOCKS and max(stretches) <= STRETCH_BLOCKS


@pytest.mark.parametrize("payload", FILLING.values(), ids=FILLING.keys())
def test_placing_pauses_after_every_256_blocks(payload: bytes, stretches: list[int]) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    index.apply(source, payload)
    assert is_well_divided(stretches)


@pytest.mark.parametrize("empty", EMPTYING.values(), ids=EMPTYING.keys())
def test_taking_pauses_after_every_256_blocks(
    empty: Callable[[PrefixIndex, int], object], stretches: list[int]
) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    index.apply(source, batch(BIG))
    stretches[:] = [0]
    empty(index, source)
    assert is_well_divided(stretches)


def test_joining_orphans_pauses_too(stretches: list[int]) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    index.apply(source, batch(*BRANCHES))
    assert index.apply(source, batch(BIG)).stored == 2 * BLOCKS
    assert sum(stretches) == 2 * BLOCKS
    assert max(stretches) <= STRETCH_BLOCKS


def test_parking_and_dropping_pauses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    index = PrefixIndex(max_orphans=10)
    source = index.add_source("m")
    pauses = []
    pause = Change.pause
    monkeypatch.setattr(Change, "pause", lambda self: (pauses.append(1), pause(self)))
    index.apply(source, batch(stored(range(BLOCKS), TOKENS, parent=-1, block_size=2)))
    assert len(pauses) >= BLOCKS // STRETCH_BLOCKS


def test_unusable_events_pause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    pauses = []
    pause = Change.pause
    monkeypatch.setattr(Change, "pause", lambda self: (pauses.append(1), pause(self)))
    index.apply(source, batch(*[["Unknown"]] * BLOCKS))
    assert len(pauses) >= BLOCKS // STRETCH_BLOCKS


def at_the_first_pause(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Gate], None]) -> None:
    """Call `meanwhile` once, when a change ends its first stretch but has not left the gate."""
    pause, left = Change.pause, [meanwhile]

    def paused(self: Change) -> None:
        if left:
            left.pop()(self._gate)
        pause(self)

    monkeypatch.setattr(Change, "pause", paused)


def test_a_request_that_comes_during_an_apply_sees_the_first_256_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    found: list[dict[int, int]] = []
    # Its size is known before the large event begins: a request hashes for sizes that are known.
    index.apply(source, batch(stored([-1], [7, 7], block_size=2)))

    def ask(gate: Gate) -> None:
        in_thread(lambda: found.append(index.match("m", TOKENS)))
        eventually(lambda: gate._looks_waiting)

    at_the_first_pause(monkeypatch, ask)
    assert index.apply(source, batch(BIG)).stored == BLOCKS
    assert eventually(lambda: found) == [{source: STRETCH_BLOCKS}]
    assert index.match("m", TOKENS) == {source: BLOCKS}


@pytest.mark.parametrize("how", ["clear_source", "remove_source"])
def test_a_clear_during_an_apply_makes_the_rest_of_the_batch_void(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    index = PrefixIndex()
    source = index.add_source("m")
    threads: list[threading.Thread] = []

    def clear(gate: Gate) -> None:
        threads.append(in_thread(lambda: getattr(index, how)(source)))
        eventually(lambda: gate._changes_waiting)
        # The next one in is a change either way; make it that of the thread that waits.
        gate.leave()
        eventually(lambda: not index.stats().per_source.get(source))
        threads[0].join(10)
        gate.enter_for_change()

    at_the_first_pause(monkeypatch, clear)
    applied = index.apply(source, batch(BIG))
    assert applied.stored == STRETCH_BLOCKS
    assert not applied.lossy
    stats = index.stats()
    assert (stats.placements, stats.blocks, stats.bytes) == (0, 0, 0)
    assert index.match("m", TOKENS) == {}


def test_many_threads_leave_a_consistent_index() -> None:
    index = PrefixIndex(max_orphans=50)
    tokens = TOKENS[:800]
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        return run

    def live() -> None:
        for _ in range(4):
            source = index.add_source("m")
            for turn in range(3):
                index.apply(source, batch(stored(range(400), tokens, block_size=2)))
                index.apply(source, batch(stored([-5], [1, 2], parent=-6, block_size=2)))
                index.apply(source, batch(removed(range(turn, 400, 2))))
                index.apply(source, batch(cleared()))
                index.clear_source(source)
            index.apply(source, batch(stored(range(400), tokens, block_size=2)))
            index.remove_source(source)

    def ask() -> None:
        for _ in range(60):
            assert all(0 < depth <= 400 for depth in index.match("m", tokens).values())
            index.stats()

    threads = [in_thread(guarded(work)) for work in (live, live, live, ask, ask)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not errors
    stats = index.stats()
    assert (stats.sources, stats.placements, stats.orphans, stats.bytes) == (0, 0, 0, 0)
