"""Random histories, against an oracle that keeps lists and recomputes everything.

Two kinds of engine take part: a sane one, whose hash of a block is decided by all that came
before it, and one that says anything at all. Alphabets are small, so that holes, copies, twins,
orphans and conflicts come up in nearly every history.
"""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.backends import BACK_ENDS, needs_core
from tests.events import TestEvent, batch, cleared, removed, stored
from tests.naive_index import NaiveIndex, Source

MODELS = ("m", "n")
ADAPTERS = (None, "a")
SALTS = (None, "s")
SHELVES = [("GPU", None), ("GPU", None), ("GPU", 1), ("CPU", None)]
"""Medium and group; group 1 is named as full attention."""
MAX_ORPHANS = 4
MAX_SOURCES = 3
MAPS = "0.33"

PROMPTS = [[0] * 8, [1] * 8, [0, 0, 0, 1, 1, 1, 0, 0], [0, 1] * 4, [0, 0, 1, 0, 0, 1]]

hashes = st.integers(0, 6) | st.sampled_from([-1, 2**64 - 1, b"\0" * 16, b"\1" * 32])
tokens = st.integers(0, 1)
media = st.sampled_from([None, None, "GPU", "CPU"])
groups = st.sampled_from([None, None, 0, 1])
kinds = st.sampled_from([None, "full_attention", "full_attention", "sliding_window"])
extras = st.sampled_from([None, None, None, ["s"], ["a"], ["a", "s"], [["mm", 0]], [b"s"], [1]])


@st.composite
def any_stored(draw: st.DrawFn) -> TestEvent:
    """A BlockStored of an engine that makes no sense."""
    size = draw(st.sampled_from([1, 2, 2, 3]))
    names = draw(st.lists(hashes, min_size=1, max_size=4))
    count = size * len(names) + draw(st.sampled_from([0] * 12 + [1, -1]))
    return stored(
        names,
        draw(st.lists(tokens, min_size=count, max_size=count)),
        parent=draw(st.none() | hashes),
        block_size=size,
        medium=draw(media),
        lora_id=draw(st.sampled_from([None, None, None, 1, 2])),
        lora_name=draw(st.sampled_from([None, None, None, "a"])),
        extra_keys=draw(st.none() | st.lists(extras, min_size=len(names), max_size=len(names))),
        group_idx=draw(groups),
        kv_cache_spec_kind=draw(kinds),
    )


any_removed = st.builds(
    lambda names, medium, group: removed(names, medium=medium, group_idx=group),
    st.lists(hashes, max_size=4),
    media,
    groups,
)
any_event = st.one_of(any_stored(), any_stored(), any_stored(), any_removed, any_removed)


def sane_hash(path: tuple[Any, ...]) -> bytes:
    """Decided by all that came before; different for different contents."""
    return repr(path).encode()


class Histories(RuleBasedStateMachine):
    """Any interleaving of sources, events and clears."""

    back_end = "reference"

    def __init__(self) -> None:
        super().__init__()
        self.index = BACK_ENDS[self.back_end](max_orphans=MAX_ORPHANS)
        self.naive = NaiveIndex(MAX_ORPHANS)
        self.seen: set[int] = set()

    @initialize()
    def two_sources(self) -> None:
        self.add("m", (None, None))
        self.add("m", (1, "a"))

    @precondition(lambda self: len(self.naive.sources) < MAX_SOURCES)
    @rule(model=st.sampled_from(MODELS), lora=st.sampled_from([(None, None), (1, "a")]))
    def add(self, model: str, lora: tuple[int | None, str | None]) -> None:
        number = self.index.add_source(model, *lora)
        assert number not in self.seen
        self.seen.add(number)
        self.naive.sources[number] = Source(model, *lora)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.naive.sources)))

    @precondition(lambda self: len(self.naive.sources) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = self.pick(data)
        self.index.remove_source(number)
        del self.naive.sources[number]

    @precondition(lambda self: self.naive.sources)
    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        number = self.pick(data)
        self.index.clear_source(number)
        old = self.naive.sources[number]
        self.naive.sources[number] = Source(old.model, old.lora_id, old.lora_name)

    def tell(self, number: int, events: list[TestEvent], version: str) -> None:
        said = self.naive.apply(number, [{"type": e.kind} | e.fields for e in events])
        applied = self.index.apply(number, batch(*events, version=version))
        assert (applied.stored, applied.removed) == (said.stored, said.removed)
        assert (applied.cleared, applied.parked) == (said.cleared, said.parked)
        assert applied.skipped == said.skipped
        assert applied.lossy is said.lossy
        assert applied.events == len(events)

    @rule(data=st.data(), events=st.lists(any_event, min_size=1, max_size=4))
    def anything(self, data: st.DataObject, events: list[TestEvent]) -> None:
        self.tell(self.pick(data), events, data.draw(st.sampled_from(["0.23", "0.24", MAPS])))

    @rule(
        data=st.data(),
        prompt=st.sampled_from(PROMPTS),
        lora=st.sampled_from(ADAPTERS),
        salt=st.sampled_from(SALTS),
        size=st.sampled_from([1, 2]),
        unseen=st.integers(0, 1),
        shelves=st.lists(st.sampled_from(SHELVES), min_size=1, max_size=2),
    )
    def a_sane_prompt(
        self,
        data: st.DataObject,
        prompt: list[int],
        lora: str | None,
        salt: str | None,
        size: int,
        unseen: int,
        shelves: list[tuple[str, int | None]],
    ) -> None:
        """A prompt from some block on, as a hit on the blocks before would have it. `unseen` is
        in the engine's hash and not on the wire, as a salt was before vLLM 0.17."""
        path: tuple[Any, ...] = (unseen, lora, salt, size)
        names = []
        for start in range(0, len(prompt), size):
            path = (*path, *prompt[start : start + size])
            names.append(sane_hash(path))
        first = data.draw(st.sampled_from([0, 0, 1, len(names) - 1]))
        last = data.draw(st.integers(first + 1, len(names)))
        of_adapter = [lora] if lora else []
        keys = [of_adapter + ([salt] if salt and not n else []) for n in range(first, last)]
        events = [
            stored(
                names[first:last],
                prompt[first * size : last * size],
                parent=names[first - 1] if first else None,
                block_size=size,
                lora_name=lora,
                extra_keys=[key or None for key in keys],
                medium=medium,
                group_idx=group,
                kv_cache_spec_kind="full_attention" if group == 1 else None,
            )
            for medium, group in shelves
        ]
        self.tell(self.pick(data), events, MAPS)

    @rule(data=st.data(), times=st.integers(1, 6))
    def an_eviction(self, data: st.DataObject, times: int) -> None:
        """Removals of what is really held or parked, so that they hit something."""
        number = self.pick(data)
        source = self.naive.sources[number]
        held = [(c.shelf, c.block_hash) for c in source.copies]
        held += [(w.shelf, w.block_hash) for w in source.waiting]
        if held:
            gone = [data.draw(st.sampled_from(held)) for _ in range(times)]
            events = [removed([h], medium=s[0], group_idx=s[1]) for s, h in gone]
            self.tell(number, events, MAPS)

    @rule(data=st.data(), lookahead=st.sampled_from([[[1]], [[1, 1, 1]]]))
    def lookahead(self, data: st.DataObject, lookahead: list[list[int]]) -> None:
        event = stored([5], [0], block_size=1, lookahead_token_ids=lookahead)
        self.tell(self.pick(data), [event], MAPS)

    @rule(data=st.data())
    def an_engine_clears(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(["0.9", "0.23", MAPS]))
        self.tell(self.pick(data), [cleared()], version)

    @invariant()
    def every_prompt_has_the_same_depths(self) -> None:
        for model in MODELS:
            for prompt in PROMPTS:
                for lora in ADAPTERS:
                    for salt in SALTS:
                        found = self.index.match(model, prompt, lora=lora, cache_salt=salt)
                        assert found == self.naive.match(model, prompt, lora, salt)

    @invariant()
    def the_sizes_are_the_same(self) -> None:
        stats = self.index.stats()
        assert stats.sources == len(self.naive.sources)
        assert stats.blocks == self.naive.blocks()
        assert stats.orphans == self.naive.orphans()
        assert stats.by_medium == self.naive.by_medium()
        assert stats.placements == sum(stats.by_medium.values())
        assert stats.per_source == self.naive.per_source()
        assert stats.full_sources == frozenset()
        assert (stats.bytes == 0) == (not stats.placements and not stats.orphans)
        for number in self.naive.sources:
            assert self.index.block_size(number) == self.naive.block_size(number)

    def teardown(self) -> None:
        for number in list(self.naive.sources):
            self.index.remove_source(number)
        assert (self.index.stats().bytes, self.index.stats().blocks) == (0, 0)


bounded = settings(
    max_examples=300,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_every_back_end_has_its_histories() -> None:
    assert {f"Test{name.capitalize()}Histories" for name in BACK_ENDS} <= set(globals())


class CoreHistories(Histories):
    back_end = "core"


TestReferenceHistories = Histories.TestCase
TestReferenceHistories.settings = bounded
TestCoreHistories = needs_core(CoreHistories.TestCase)
TestCoreHistories.settings = bounded
