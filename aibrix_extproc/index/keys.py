"""Block keys: our own name of a block, the same in every source that holds it.

Owns the byte layout that is hashed. Knows nothing of events, sources or engines' hashes.

The layout is a contract: another implementation must give the same 64 bits. `H(data, seed)` is
XXH3, 64 bits, with a seed. All integers below are little-endian.

    root      = H("aibrix-extproc block key 1" ‖ u32 block size ‖ adapter, seed 0)
                adapter: 00             none
                         01 ‖ UTF-8     the adapter's name, to the end of the data
                         02 ‖ i128      an id that nobody gave a name: no request has this root
    plain_i   = H(tokens of block i, each a u32, seed key_{i-1})           (key_{-1} = root)
    key_i     = plain_i                            where block i has no extras
              = H(extras of block i, seed plain_i) where it has

Extras are one list, written by this grammar and then padded with 00 up to a length of 4k + 1:

    value = "n"                           null
          | "?" ‖ u8                      false 0, true 1
          | "i" ‖ i128                    integer
          | "f" ‖ IEEE 754 double         floating point number
          | "s" ‖ u32 length ‖ UTF-8      string
          | "b" ‖ u32 length ‖ bytes      byte string
          | "l" ‖ u32 count ‖ value …     list

Why nothing is taken for something else: tokens are 4k bytes long and extras 4k + 1, so that one
is never read as the other, whatever a client writes into its salt; a value says where it ends,
so that the padding adds no second reading; the block size and the kind of adapter stand at fixed
places of the root. An empty list is written as no extras at all.

XXH3 is no cryptographic hash. Who can choose tokens can build collisions; they cost a request a
bad choice of pod, never a wrong answer.
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from xxhash import xxh3_64_intdigest

TOKEN_BYTES: Final = 4
MAX_EXTRAS_NESTING: Final = 8
"""Lists within lists that extras may hold; engines use two."""

_ROOT_PREFIX: Final = b"aibrix-extproc block key 1"
_U32: Final = struct.Struct("<I")
_DOUBLE: Final = struct.Struct("<d")
_INTEGER_BYTES: Final = 16


class UnusableExtras(ValueError):
    """Extras hold something that has no place in a key: a map, an extension, too deep a list."""


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as they are hashed: four bytes each, little-endian.

    Takes a sequence of ints, a buffer of unsigned 32-bit ints (an array, a memoryview), or a
    buffer of plain bytes that already holds them in little-endian order. Raises OverflowError
    for an id that does not fit into 32 bits, TypeError for what is no int, ValueError for bytes
    whose length is no multiple of four.
    """
    if isinstance(tokens, (list, tuple)):
        return _little_endian(array("I", tokens))
    try:
        view = memoryview(tokens)  # type: ignore[arg-type]
    except TypeError:
        return _little_endian(array("I", list(tokens)))
    if view.itemsize == 1:
        if view.nbytes % TOKEN_BYTES:
            raise ValueError(f"{view.nbytes} bytes are no whole number of 32-bit token ids")
        return view.tobytes()
    if view.format in ("I", "<I", "=I", "@I") and sys.byteorder == "little":
        return view.tobytes()
    return _little_endian(array("I", view.tolist()))


def _little_endian(values: "array[int]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def root_key(block_size: int, adapter: str | None) -> int:
    """The key before block 0 of every prompt with this adapter, in blocks of so many tokens."""
    named = b"\0" if adapter is None else b"\1" + _utf8(adapter)
    return xxh3_64_intdigest(_root_prefix(block_size) + named, 0)


def nameless_root_key(block_size: int, lora_id: int) -> int:
    """The root under an adapter's id that nobody gave a name: it matches no request."""
    return xxh3_64_intdigest(_root_prefix(block_size) + b"\2" + _integer(lora_id), 0)


def _root_prefix(block_size: int) -> bytes:
    return _ROOT_PREFIX + _U32.pack(block_size)


def block_key(parent: int, tokens: bytes, extras: bytes = b"") -> int:
    """The key of a block from its parent's key, its tokens' bytes and its encoded extras."""
    key = xxh3_64_intdigest(tokens, parent)
    return xxh3_64_intdigest(extras, key) if extras else key


def plain_keys(parent: int, tokens: bytes, block_size: int) -> list[int]:
    """The keys of consecutive blocks without extras; `tokens` holds whole blocks."""
    keys: list[int] = []
    key = parent
    append = keys.append
    for (block,) in _cutter(block_size * TOKEN_BYTES).iter_unpack(tokens):
        key = xxh3_64_intdigest(block, key)
        append(key)
    return keys


@lru_cache(maxsize=64)
def _cutter(block_bytes: int) -> struct.Struct:
    """Cuts bytes into blocks; faster than slicing them one by one."""
    return struct.Struct(f"{block_bytes}s")


def request_keys(tokens: bytes, block_size: int, lora: str | None, salt: str | None) -> list[int]:
    """The keys of all full blocks of a prompt, whose salt is an extra of block 0 alone."""
    step = block_size * TOKEN_BYTES
    whole = tokens[: len(tokens) - len(tokens) % step]
    root = root_key(block_size, lora)
    if not salt or not whole:
        return plain_keys(root, whole, block_size)
    first = block_key(root, whole[:step], encode_extras((salt,)))
    return [first, *plain_keys(first, whole[step:], block_size)]


def encode_extras(extras: Sequence[object]) -> bytes:
    """The extras of one block by the grammar above; nothing for an empty list.

    Raises UnusableExtras for a value that the grammar does not know.
    """
    if not extras:
        return b""
    encoded = _encode(list(extras), MAX_EXTRAS_NESTING)
    return encoded + bytes((1 - len(encoded)) % TOKEN_BYTES)


def _encode(value: object, nesting: int) -> bytes:
    match value:
        case None:
            return b"n"
        case bool():
            return b"?\1" if value else b"?\0"
        case int():
            return b"i" + _integer(value)
        case float():
            return b"f" + _DOUBLE.pack(value)
        case str():
            text = _utf8(value)
            return b"s" + _U32.pack(len(text)) + text
        case bytes():
            return b"b" + _U32.pack(len(value)) + value
        case list() | tuple() if nesting:
            items = b"".join(_encode(item, nesting - 1) for item in value)
            return b"l" + _U32.pack(len(value)) + items
    raise UnusableExtras(f"extras hold a {type(value).__name__} that has no place in a key")


def _integer(value: int) -> bytes:
    try:
        return value.to_bytes(_INTEGER_BYTES, "little", signed=True)
    except OverflowError:
        raise UnusableExtras("an integer of more than 128 bits") from None


def _utf8(text: str) -> bytes:
    """UTF-8, with lone surrogates (which JSON can carry, and no engine announces) written too."""
    return text.encode("utf-8", "surrogatepass")
