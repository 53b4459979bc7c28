"""Token ids straight from a reply's bytes, where the compiled core is there to read them.

Owns nothing of what a reply means: a reply that is not plainly what it should be is None here,
and `request` reads it in Python and says what it is. Without the core every reply is.
"""

from array import array

try:
    from aibrix_extproc import _core
except ImportError:
    _core = None  # type: ignore[assignment]


def tokenized(reply: bytes) -> "tuple[array[int], int] | None":
    """The ids and `max_model_len` (0 where it is not told) of a `/tokenize` reply."""
    read = _core.read_tokenized(reply) if _core is not None else None
    return (_array(read[0]), read[1]) if read is not None else None


def rendered(reply: bytes, *, is_list: bool) -> "array[int] | None":
    """The ids of a `/render` reply; of a list of them the first."""
    read = _core.read_rendered(reply, is_list) if _core is not None else None
    return _array(read) if read is not None else None


def _array(ids: "_core.TokenIds") -> "array[int]":
    """One copy of memory: what the rest of this server takes for ids."""
    copied = array("I")
    copied.frombytes(memoryview(ids).cast("B"))
    return copied
