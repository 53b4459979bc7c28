"""Block keys: the byte layout, and what must never be taken for something else."""

import itertools
import struct
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from aibrix_extproc.index.keys import (
    MAX_EXTRAS_NESTING,
    UnusableExtras,
    block_key,
    encode_extras,
    nameless_root_key,
    request_keys,
    root_key,
    token_bytes,
)
from tests.backends import NewIndex

TOKENS = list(range(1, 13))
PLAIN_KEYS = ["0x5e761417a482a0e9", "0xe60980c35dc5626e", "0x27b101e86a4b6828"]
SALTED_KEYS = ["0x51661f9713b5b48f", "0xcf0ca45868df3ebc", "0xf1a8da9273957c6c"]


def test_the_layout_is_the_documented_one(new_index: NewIndex) -> None:
    """Written out by hand: another implementation has these bytes to reproduce."""
    root = xxh3_64_intdigest(b"aibrix-extproc block key 1" + struct.pack("<I", 4) + b"\x01ad", 0)
    first = xxh3_64_intdigest(struct.pack("<4I", 1, 2, 3, 4), root)
    salted = xxh3_64_intdigest(
        b"l" + struct.pack("<I", 1) + b"s" + struct.pack("<I", 4) + b"salt" + b"\0" * 3, first
    )
    second = xxh3_64_intdigest(struct.pack("<4I", 5, 6, 7, 8), salted)
    keys = new_index().block_keys(TOKENS[:11], 4, lora="ad", cache_salt="salt")
    assert list(keys) == [salted, second]


def test_the_keys_stay_what_they_are(new_index: NewIndex) -> None:
    """Fixed numbers, so that a change of layout is noticed."""
    plain = new_index().block_keys(TOKENS, 4)
    assert [hex(key) for key in plain] == PLAIN_KEYS
    salted = new_index().block_keys(TOKENS, 4, lora="adapter", cache_salt="tenant-ä")
    assert [hex(key) for key in salted] == SALTED_KEYS


def test_keys_are_a_buffer_of_unsigned_64_bit_ints(new_index: NewIndex) -> None:
    keys = new_index().block_keys(TOKENS, 4)
    assert memoryview(keys).format == "Q"
    assert len(keys) == 3


@pytest.mark.parametrize("salt", [None, "", "salt"])
@pytest.mark.parametrize("count", range(10))
def test_only_full_blocks_have_a_key(new_index: NewIndex, count: int, salt: str | None) -> None:
    keys = new_index().block_keys(TOKENS[:count], 4, cache_salt=salt)
    assert len(keys) == count // 4
    assert list(keys) == list(new_index().block_keys(TOKENS, 4, cache_salt=salt))[: count // 4]


def test_an_empty_salt_is_no_salt(new_index: NewIndex) -> None:
    index = new_index()
    assert index.block_keys(TOKENS, 4, cache_salt="") == index.block_keys(TOKENS, 4)


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_has_at_least_one_token(new_index: NewIndex, size: int) -> None:
    with pytest.raises(ValueError, match="a block of"):
        new_index().block_keys(TOKENS, size)


BIG = [0, 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize(
    "tokens",
    [
        BIG,
        tuple(BIG),
        array("I", BIG),
        array("Q", BIG),
        memoryview(array("I", BIG)),
        memoryview(array("Q", BIG)),
        struct.pack("<4I", *BIG),
        bytearray(struct.pack("<4I", *BIG)),
        memoryview(struct.pack("<4I", *BIG)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_tokens_may_come_as_ints_or_as_a_buffer(tokens: list[int]) -> None:
    assert token_bytes(tokens) == struct.pack("<4I", *BIG)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_does_not_fit_is_an_error(token: int) -> None:
    for tokens in ([token], array("q", [token])):
        with pytest.raises(OverflowError):
            token_bytes(tokens)


def test_bytes_that_are_no_whole_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 bytes"):
        token_bytes(b"12345")


@pytest.mark.parametrize("tokens", [["1"], [1.0], "1234", 5])
def test_what_is_no_sequence_of_ints_is_an_error(tokens: list[int]) -> None:
    with pytest.raises(TypeError):
        token_bytes(tokens)


def test_roots_differ_by_size_adapter_and_kind_of_adapter() -> None:
    sizes, names = (1, 4, 16, 2**31), (None, "", "a", "ab", "\0", "1")
    named = [root_key(size, name) for size, name in itertools.product(sizes, names)]
    nameless = [nameless_root_key(s, i) for s, i in itertools.product(sizes, (-1, 0, 1, 49, 2**64))]
    assert len({*named, *nameless}) == len(named) + len(nameless)


def test_a_salt_that_spells_tokens_is_still_a_salt() -> None:
    """Extras are 4k + 1 bytes long, tokens 4k: no salt can stand for a block of tokens."""
    root = root_key(4, None)
    for length in range(40):
        extras = encode_extras(("x" * length,))
        assert len(extras) % 4 == 1
        salted = block_key(root, token_bytes([1, 2, 3, 4]), extras)
        padded = extras + bytes(-len(extras) % 4)
        two_blocks = block_key(block_key(root, token_bytes([1, 2, 3, 4])), padded)
        assert salted != two_blocks


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
EXTRAS = st.lists(st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=3), max_leaves=6))


def typed(value: object) -> object:
    """Equal only where value and type are: True is not 1 here, and 1 is not 1.0."""
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value).__name__, repr(value)


@given(EXTRAS, EXTRAS)
def test_different_extras_never_have_the_same_bytes(one: list[object], other: list[object]) -> None:
    same = typed(one) == typed(other)
    assert (encode_extras(one) == encode_extras(other)) is same


def test_no_extras_are_no_bytes() -> None:
    assert encode_extras(()) == b""
    assert encode_extras((None,)) != b""


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("value", [{}, object(), nested(MAX_EXTRAS_NESTING), 2**127])
def test_what_the_grammar_does_not_know_is_refused(value: object) -> None:
    with pytest.raises(UnusableExtras):
        encode_extras((value,))


def test_lists_may_be_nested_a_few_times() -> None:
    assert encode_extras(nested(MAX_EXTRAS_NESTING))


def test_a_salt_with_a_lone_surrogate_has_a_key_too(new_index: NewIndex) -> None:
    index = new_index()
    assert index.block_keys(TOKENS, 4, cache_salt="\ud800") != index.block_keys(TOKENS, 4)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 9), st.text(max_size=3))
def test_a_chain_is_the_block_by_block_one(tokens: list[int], size: int, salt: str) -> None:
    data = token_bytes(tokens)
    key, expected = root_key(size, None), []
    for start in range(0, len(tokens) - size + 1, size):
        extras = encode_extras((salt,)) if salt and not start else b""
        key = block_key(key, data[4 * start : 4 * (start + size)], extras)
        expected.append(key)
    assert request_keys(data, size, None, salt) == expected
