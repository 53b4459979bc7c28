"""The masks of a model: bits are handed out again, and only when they stand nowhere."""

from aibrix_extproc.index.masks import ModelMasks, Usage
from aibrix_extproc.index.reference import PrefixIndex
from tests.events import batch, cleared, stored


def test_a_free_bit_is_handed_out_again() -> None:
    masks = ModelMasks(Usage(0))
    first, second = masks.take_bit(1), masks.take_bit(2)
    assert first & second == 0
    masks.free_bit(first)
    assert masks.take_bit(3) == first
    assert masks.take_bit(4) not in (first, second)


def test_a_bit_belongs_to_its_new_source_alone() -> None:
    masks = ModelMasks(Usage(0))
    bit = masks.take_bit(1)
    masks.set([10, 11], bit)
    masks.count(bit, 4)
    assert list(masks.depths(4, [10, 11, 12])) == [(1, 2)]
    for key in (10, 11):
        masks.unset(key, bit)
    masks.uncount(bit, 4)
    masks.free_bit(bit)
    assert masks.take_bit(2) == bit
    masks.count(bit, 4)
    assert list(masks.depths(4, [10, 11, 12])) == []
    masks.set([10], bit)
    assert list(masks.depths(4, [10, 11, 12])) == [(2, 1)]


def test_the_walk_ends_where_no_source_is_left() -> None:
    masks = ModelMasks(Usage(0))
    bits = [masks.take_bit(source) for source in range(3)]
    for bit, depth in zip(bits, (1, 3, 3), strict=True):
        masks.set(range(depth), bit)
        masks.count(bit, 16)
    asked = []

    class Watched(list):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            for key in list.__iter__(self):
                asked.append(key)
                yield key

    assert sorted(masks.depths(16, Watched(range(100)))) == [(0, 1), (1, 3), (2, 3)]
    assert asked == [0, 1, 2, 3]


def test_masks_stay_narrow_however_many_sources_come_and_go() -> None:
    index = PrefixIndex()
    prompt = list(range(8))
    stays = index.add_source("m")
    index.apply(stays, batch(stored([1, 2], prompt)))
    for _ in range(50):
        source = index.add_source("m")
        index.apply(source, batch(stored([1, 2], prompt), cleared(), stored([1, 2], prompt)))
        index.clear_source(source)
        index.apply(source, batch(stored([1, 2], prompt)))
        index.remove_source(source)
    widest = max(mask.bit_length() for mask in index._models["m"].masks.values())
    index.apply(index.add_source("m"), batch(stored([1, 2], prompt)))
    assert widest == 1
    assert max(mask.bit_length() for mask in index._models["m"].masks.values()) <= 3
