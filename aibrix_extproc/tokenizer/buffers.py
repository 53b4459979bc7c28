"""The few things that are done with a buffer of token ids, so that any buffer of u32 will do.

A buffer is `array('I')`, or whatever offers its unsigned 32-bit ints through the buffer protocol:
no Python int is made here. It knows nothing of what the ids mean.
"""

from array import array
from typing import Final, TypeAlias

TOKEN_BYTES: Final = 4

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
    """How many leading bytes are equal: by halving, each half compared as memory."""
    low, high = 0, min(len(one), len(other))
    if bytes(one[:high]) == bytes(other[:high]):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if bytes(one[low:middle]) == bytes(other[low:middle]):
            low = middle
        else:
            high = middle
    return low


def _bytes(ids: TokenBuffer) -> memoryview:
    return memoryview(ids).cast("B")


def _copied(raw: memoryview) -> TokenBuffer:
    copy = array("I")
    copy.frombytes(raw)
    return copy
