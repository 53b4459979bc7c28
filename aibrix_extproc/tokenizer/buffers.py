"""The few things that are done with a buffer of token ids, so that any buffer of u32 will do.

A buffer is `array('I')`, or whatever offers its unsigned 32-bit ints through the buffer protocol:
no Python int is made here. It knows nothing of what the ids mean.
"""

from array import array
from typing import Final, TypeAlias

TOKEN_BYTES: Final = 4

_AT_ONCE: Final = 2048

TokenBuffer: TypeAlias = "array[int]"
"""What the rest of this room names such a buffer."""


def first_tokens(ids: TokenBuffer, count: int) -> TokenBuffer:
    """A copy of the first `count` ids; of all where there are not so many."""
    return _copied(_bytes(ids)[: max(0, count) * TOKEN_BYTES])


def last_tokens(ids: TokenBuffer, count: int) -> TokenBuffer:
    """A copy of the last `count` ids; of all where there are not so many."""
    return _copied(_bytes(ids)[max(0, len(ids) - count) * TOKEN_BYTES :])


def common_tokens(one: TokenBuffer, other: TokenBuffer, limit: int | None = None) -> int:
    """How many leading ids are equal, at most `limit`."""
    longest = min(len(one), len(other))
    longest = longest if limit is None else min(longest, limit)
    end = longest * TOKEN_BYTES
    return common_bytes(_bytes(one)[:end], _bytes(other)[:end]) // TOKEN_BYTES


def common_ending(one: TokenBuffer, other: TokenBuffer) -> TokenBuffer:
    """The longest run of ids with which both end. For short buffers: ids are compared singly."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return last_tokens(one, count)


def common_bytes(one: "memoryview | bytes", other: "memoryview | bytes") -> int:
    """How many leading bytes are equal.

    Long ones by halving, each half compared as memory; the last _AT_ONCE bytes as two big
    numbers, whose difference begins with the first byte that differs.
    """
    low, high = 0, min(len(one), len(other))
    if high > _AT_ONCE:
        if bytes(one[:high]) == bytes(other[:high]):
            return high
        while high - low > _AT_ONCE:
            middle = (low + high) // 2
            if bytes(one[low:middle]) == bytes(other[low:middle]):
                low = middle
            else:
                high = middle
    differ = int.from_bytes(one[low:high], "big") ^ int.from_bytes(other[low:high], "big")
    return high - (differ.bit_length() + 7) // 8


def _bytes(ids: TokenBuffer) -> memoryview:
    return memoryview(ids).cast("B")


def _copied(raw: memoryview) -> TokenBuffer:
    copy = array("I")
    copy.frombytes(raw)
    return copy
