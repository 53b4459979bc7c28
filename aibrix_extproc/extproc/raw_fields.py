"""Fields of a JSON object that are still slices of the client's bytes, looked at one by one.

Pure. Owns how a slice is told from another and read; knows no field by its name.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

# RecursionError: brackets nested some hundreds deep. ValueError: bytes that are no UTF-8.
UNREADABLE: Final = (msgspec.DecodeError, RecursionError, ValueError)
"""What reading a client's JSON may raise."""


def head(value: Raw) -> bytes:
    """The first byte, which tells the type: a slice has no white space around it."""
    return bytes(memoryview(value)[:1])


def size_bytes(value: Raw) -> int:
    """Length of a slice; 0 for `Raw()`."""
    return len(memoryview(value))


def is_null(fields: Mapping[str, Raw], name: str) -> bool:
    """Whether a field is missing or null."""
    return name not in fields or head(fields[name]) == b"n"


def scalar(fields: Mapping[str, Raw], name: str) -> object:
    """A field that should be a scalar; None where it is missing, null or something else."""
    value = fields.get(name)
    if value is None or head(value) in (b"[", b"{"):
        return None
    return decoded(fields, name)


def decoded(fields: Mapping[str, Raw], name: str) -> object:
    """A field, read; None where it is missing or cannot be read."""
    try:
        return msgspec.json.decode(fields[name]) if name in fields else None
    except UNREADABLE:
        return None
