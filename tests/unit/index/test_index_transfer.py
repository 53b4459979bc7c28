"""A source is exported from one index and imported into another: nobody can tell the two apart."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from tests.backends import BACK_ENDS, NewIndex, needs_core
from tests.events import batch, cleared, removed, stored
from tests.index_histories import (
    ADAPTERS,
    HISTORIES,
    SALTS,
    Engine,
    Traits,
    make_prompts,
    next_payload,
)

MODEL = "m"
PROMPT = list(range(16))
U64 = 2**64 - 1


def transferred(index: Any, to: Any, source: int, **adapter: Any) -> int:
    """The source's number in the other index."""
    number = to.add_source(MODEL, **adapter)
    to.import_source(number, index.export_source(source))
    return int(number)


@pytest.fixture(params=["reference", pytest.param("core", marks=needs_core)])
def other_index(request: pytest.FixtureRequest) -> NewIndex:
    """The class of the index that imports."""
    return BACK_ENDS[request.param]


class TestHistories:
    """Seeded histories: an index that never stopped beside one that took over in the middle."""

    @pytest.mark.parametrize("history", HISTORIES)
    def test_a_source_goes_on_elsewhere_as_if_nothing_had_been(
        self, new_index: NewIndex, other_index: NewIndex, history: str
    ) -> None:
        traits, sources, _events = HISTORIES[history]
        rng = random.Random(f"transfer {history}")
        kept = new_index(max_orphans=traits.max_orphans)
        prompts = make_prompts(rng)
        engines = [
            Engine(random.Random(rng.getrandbits(64)), traits, rng.choice(traits.sizes))
            for _ in range(min(sources, 12))
        ]
        adapters: list[dict[str, Any]] = [
            rng.choice([{}, {"lora_id": 1, "lora_name": "a"}]) for _ in engines
        ]
        numbers = [kept.add_source(MODEL, **adapter) for adapter in adapters]
        for _ in range(rng.randint(300, 600)):
            at = rng.randrange(len(engines))
            kept.apply(numbers[at], next_payload(rng, engines[at], prompts)[0])

        moved = other_index(max_orphans=traits.max_orphans)
        moved.add_source("another model")
        new_numbers = [
            transferred(kept, moved, number, **adapter)
            for number, adapter in zip(numbers, adapters, strict=True)
        ]
        self.compare(kept, moved, dict(zip(numbers, new_numbers, strict=True)), prompts, traits)
        for step in range(300):
            at = rng.randrange(len(engines))
            payload, _ = next_payload(rng, engines[at], prompts)
            expected = kept.apply(numbers[at], payload)
            assert moved.apply(new_numbers[at], payload) == expected
            if step % 150 == 149:
                self.compare(
                    kept, moved, dict(zip(numbers, new_numbers, strict=True)), prompts, traits
                )

    def compare(
        self,
        kept: Any,
        moved: Any,
        numbers: dict[int, int],
        prompts: list[list[int]],
        traits: Traits,
    ) -> None:
        for prompt in prompts:
            for lora in ADAPTERS if traits.adapters else [None]:
                for salt in SALTS if traits.salts else [None]:
                    expected = kept.match(MODEL, prompt, lora=lora, cache_salt=salt)
                    found = moved.match(MODEL, prompt, lora=lora, cache_salt=salt)
                    assert found == {numbers[source]: depth for source, depth in expected.items()}
        before, after = kept.stats(), moved.stats()
        expected_stats = replace(
            before,
            sources=before.sources + 1,
            per_source={0: 0} | {numbers[s]: count for s, count in before.per_source.items()},
            full_sources=frozenset(numbers[s] for s in before.full_sources),
        )
        if type(kept) is not type(moved):
            after = replace(after, bytes=before.bytes)
        assert after == expected_stats
        for source, number in numbers.items():
            assert moved.block_size(number) == kept.block_size(source)
            assert moved.export_source(number) == kept.export_source(source)


class TestExport:
    def test_equal_sources_are_equal_bytes(self, new_index: NewIndex) -> None:
        index = new_index()
        one = index.add_source(MODEL)
        index.apply(one, batch(stored([7, 8], PROMPT[:8]), stored([9], [1, 2, 3, 4])))
        other = transferred(index, index, one)
        third = transferred(index, index, other)
        assert index.export_source(third) == index.export_source(one)

    def test_an_export_takes_16_bytes_for_each_block(self, new_index: NewIndex) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        empty = len(index.export_source(source))
        index.apply(source, batch(stored(range(1000), [n % 7 for n in range(4000)])))
        per_shelf = 2 + len("GPU") + 1 + 4 + 8 + 8
        assert len(index.export_source(source)) == empty + per_shelf + 16_000

    def test_removals_by_hashes_of_bytes_find_what_was_imported(
        self, new_index: NewIndex, other_index: NewIndex
    ) -> None:
        index, other = new_index(), other_index()
        source = index.add_source(MODEL)
        hashes = [bytes([n]) * 32 for n in range(3)] + [-5]
        index.apply(source, batch(stored(hashes, PROMPT)))
        number = transferred(index, other, source)
        assert other.match(MODEL, PROMPT) == {number: 4}
        assert other.apply(number, batch(removed(hashes[2:]))).removed == 2
        assert other.match(MODEL, PROMPT) == {number: 2}

    def test_orphans_are_joined_by_their_parent_afterwards(
        self, new_index: NewIndex, other_index: NewIndex
    ) -> None:
        index, other = new_index(), other_index()
        source = index.add_source(MODEL)
        index.apply(source, batch(stored([3, 4], PROMPT[8:], parent=2)))
        number = transferred(index, other, source)
        assert other.stats().orphans == 2
        other.apply(number, batch(stored([1, 2], PROMPT[:8])))
        assert other.match(MODEL, PROMPT) == {number: 4}
        assert other.stats().orphans == 0

    def test_without_orphans_there_is_no_token_in_it(
        self, new_index: NewIndex, other_index: NewIndex
    ) -> None:
        index, other = new_index(), other_index()
        source = index.add_source(MODEL)
        index.apply(source, batch(stored([1], PROMPT[:4]), stored([9], PROMPT[8:12], parent=8)))
        tokens = struct.pack("<4I", *PROMPT[8:12])
        assert tokens in index.export_source(source)
        bare = index.export_source(source, orphans=False)
        assert tokens not in bare
        number = other.add_source(MODEL)
        other.import_source(number, bare)
        assert (other.match(MODEL, PROMPT), other.stats().orphans) == ({number: 1}, 0)

    def test_an_unknown_source_is_a_key_error(self, new_index: NewIndex) -> None:
        index = new_index()
        with pytest.raises(KeyError):
            index.export_source(3)
        with pytest.raises(KeyError):
            index.import_source(3, b"")


class TestImport:
    def test_a_source_in_use_takes_none(self, new_index: NewIndex) -> None:
        index = new_index()
        source, used = index.add_source(MODEL), index.add_source(MODEL)
        index.apply(used, batch(stored([1], PROMPT[:4])))
        with pytest.raises(ValueError, match="in use"):
            index.import_source(used, index.export_source(source))
        assert index.match(MODEL, PROMPT) == {used: 1}

    def test_a_cleared_source_takes_one(self, new_index: NewIndex) -> None:
        index = new_index()
        source, used = index.add_source(MODEL), index.add_source(MODEL)
        index.apply(source, batch(stored([1, 2], PROMPT[:8])))
        index.apply(used, batch(stored([1], PROMPT[:4])))
        index.clear_source(used)
        index.import_source(used, index.export_source(source))
        assert index.match(MODEL, PROMPT) == {source: 2, used: 2}

    def test_what_is_imported_is_cleared_and_removed_like_all_else(
        self, new_index: NewIndex
    ) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        index.apply(source, batch(stored([1, 2], PROMPT[:8]), stored([9], [5] * 4, parent=8)))
        number = transferred(index, index, source)
        index.remove_source(source)
        alone = index.stats()
        assert (alone.blocks, alone.placements, alone.orphans) == (2, 2, 1)
        assert index.apply(number, batch(cleared())).cleared == 1
        assert (index.stats().blocks, index.stats().orphans, index.stats().bytes) == (0, 0, 0)

    def test_what_finds_no_room_is_left_out_and_the_source_is_full(
        self, new_index: NewIndex, other_index: NewIndex
    ) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        index.apply(source, batch(stored(range(2000), [n % 9 for n in range(8000)])))
        small = other_index(max_bytes=20_000)
        number = transferred(index, small, source)
        stats = small.stats()
        assert 0 < stats.placements < 2000
        assert stats.bytes <= 20_000
        assert stats.full_sources == {number}
        small.clear_source(number)
        assert small.stats().bytes == 0

    def test_of_too_many_orphans_the_oldest_go(self, new_index: NewIndex) -> None:
        index, small = new_index(), new_index(max_orphans=2)
        source = index.add_source(MODEL)
        for n in range(4):
            index.apply(source, batch(stored([n + 10], [n] * 4, parent=n + 20)))
        number = transferred(index, small, source)
        assert small.stats().orphans == 2
        assert small.apply(number, batch(removed([10, 11, 12, 13]))).removed == 2

    def test_it_counts_for_nothing_in_another_model(self, new_index: NewIndex) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        index.apply(source, batch(stored([1], PROMPT[:4])))
        other = index.add_source("n")
        index.import_source(other, index.export_source(source))
        assert index.match(MODEL, PROMPT) == {source: 1}


# -- bytes that nobody vouches for ----------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    """With a checksum that is right."""
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")


def export(
    *shelves: bytes, orphans: bytes = struct.pack("<I", 0), full: int = 0, indexed: int = 0
) -> bytes:
    """An export by hand: the layout of docs/warm-restart.md."""
    head = b"AIBKVSRC" + struct.pack("<IQBQQQ", 1, 99, full, 0, 0, indexed)
    return sealed(head + struct.pack("<I", len(shelves)) + b"".join(shelves) + orphans)


def shelf(
    *blocks: tuple[int, int],
    medium: bytes = b"GPU",
    group: int = 0,
    size: int = 4,
    copies: tuple[tuple[int, int], ...] = (),
    count: int | None = None,
) -> bytes:
    said = struct.pack("<H", len(medium)) + medium + struct.pack("<BI", group, size)
    for columns, length in ((blocks, count), (copies, None)):
        said += struct.pack("<Q", len(columns) if length is None else length)
        for column in (0, 1):
            said += b"".join(struct.pack("<Q", pair[column]) for pair in columns)
    return said


def orphan(at: int = 0, copies: int = 1, tokens: bytes = b"\0" * 16) -> bytes:
    said = struct.pack("<IQQQI", at, 5, 6, copies, len(tokens)) + tokens
    return said + struct.pack("<I", 0)


ONE = struct.pack("<I", 1)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no export"),
    "something else": (b"\x93\x01\x02\x03" * 20, "no export"),
    "the mark alone": (b"AIBKVSRC", "too early"),
    "an older version": (
        sealed(b"AIBKVSRC" + struct.pack("<I", 0) + bytes(40)),
        "version 0",
    ),
    "a later version": (sealed(b"AIBKVSRC" + struct.pack("<I", 2)), "version 2"),
    "a wrong checksum": (export()[:-1] + b"\xff", "checksum"),
    "no room for a head": (sealed(b"AIBKVSRC" + struct.pack("<I", 1)), "too early"),
    "a flag of 2": (export(full=2), "flag"),
    "an indexed group of no kind": (export(indexed=1), "named no kind"),
    "a shelf that is not there": (sealed(export(shelf())[:-12]), "too early"),
    "65 shelves": (export(*[shelf(medium=b"%d" % n) for n in range(65)]), "65 shelves"),
    "a shelf twice": (export(shelf(), shelf()), "twice"),
    "a group of 64": (export(shelf(group=64)), "group"),
    "a medium of 65 letters": (export(shelf(medium=b"x" * 65)), "medium"),
    "a medium that is no text": (export(shelf(medium=b"\xff\xfe")), "UTF-8"),
    "blocks of no size": (export(shelf((1, 2), size=0)), "no size"),
    "2^61 blocks": (export(shelf((1, 2), count=2**61)), "too early"),
    "2^64 - 1 blocks": (export(shelf((1, 2), count=U64)), "too early"),
    "a hash twice": (export(shelf((1, 2), (1, 2))), "order"),
    "hashes out of order": (export(shelf((2, 2), (1, 2))), "order"),
    "a hash of two meanings": (
        export(shelf((1, 2)), shelf((1, 3), medium=b"CPU")),
        "means two blocks",
    ),
    "copies of nothing": (export(shelf((1, 2), copies=((3, 1),))), "no block"),
    "no copies": (export(shelf((1, 2), copies=((1, 0),))), "impossible"),
    "2^63 copies": (export(shelf((1, 2), copies=((1, 2**63),))), "impossible"),
    "an orphan on no shelf": (export(shelf(), orphans=ONE + orphan(at=1)), "no shelf"),
    "an orphan of no copies": (export(shelf(), orphans=ONE + orphan(copies=0)), "impossible"),
    "an orphan of no tokens": (export(shelf(), orphans=ONE + orphan(tokens=b"")), "tokens"),
    "an orphan of half a token": (export(shelf(), orphans=ONE + orphan(tokens=b"123")), "tokens"),
    "an orphan twice": (
        export(shelf(), orphans=struct.pack("<I", 2) + orphan() + orphan()),
        "twice",
    ),
    "2^32 - 1 orphans": (export(shelf(), orphans=b"\xff" * 4), "too early"),
    "bytes behind it": (sealed(export(shelf())[:-8] + b"\0"), "bytes follow"),
}


class TestHostileBytes:
    @pytest.mark.parametrize(("data", "why"), HOSTILE.values(), ids=HOSTILE.keys())
    def test_what_is_no_export_is_refused_with_a_reason(
        self, new_index: NewIndex, data: bytes, why: str
    ) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        blank = index.export_source(source)
        with pytest.raises(ValueError, match=why):
            index.import_source(source, data)
        assert index.export_source(source) == blank
        assert index.stats().bytes == 0
        assert index.apply(source, batch(stored([1], PROMPT[:4]))).stored == 1

    def test_the_export_by_hand_is_one(self, new_index: NewIndex) -> None:
        index = new_index()
        source = index.add_source(MODEL)
        keys = index.block_keys(PROMPT, 4)
        said = export(
            shelf((1, keys[0]), (2, keys[1]), copies=((2, 3),)), orphans=ONE + orphan(copies=2)
        )
        index.import_source(source, said)
        assert index.match(MODEL, PROMPT) == {source: 2}
        assert index.stats().placements == 5
        assert index.export_source(source) == said

    @pytest.mark.parametrize("seal", [sealed, bytes], ids=["sealed", "as it is"])
    def test_damage_is_refused_or_means_something(
        self, new_index: NewIndex, seal: Callable[[bytes], bytes]
    ) -> None:
        rng = random.Random(11)
        index = new_index()
        source = index.add_source(MODEL)
        traits = Traits(media=True, groups=True, orphans=0.3, copies=0.3)
        engine, prompts = Engine(rng, traits, 4), make_prompts(rng)
        for _ in range(60):
            index.apply(source, next_payload(rng, engine, prompts)[0])
        good = index.export_source(source)
        imported = 0
        for _ in range(600):
            bad = bytearray(good[:-8] if seal is sealed else good)
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(bad))
                if rng.random() < 0.5:
                    bad[at] ^= 1 << rng.randrange(8)
                else:
                    del bad[at : at + rng.randint(1, 40)]
            number = index.add_source(MODEL)
            try:
                index.import_source(number, seal(bytes(bad)))
                imported += 1
            except ValueError:
                assert index.stats().per_source[number] == 0
            index.remove_source(number)
        assert index.export_source(source) == good
        assert (imported > 0) == (seal is sealed)
