"""Where the parts of a msgpack batch begin and end, for batches that do not decode as a whole.

Finds the events of `[ts, [event, …], …]` and the tag of one event without decoding anything
else, so that an event with nonsense in it (nested ten thousand lists deep, text that is no
UTF-8) costs itself alone. Walks with a counter instead of recursion; time is linear in the
bytes, and a header that promises more than there is ends the walk. Knows no field of an event.
"""

from typing import Final

ARRAY_KINDS: Final = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})
_MAP_KINDS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
_FIXED_BYTES: Final = {
    0xC0: 0, 0xC2: 0, 0xC3: 0,                                  # nil, false, true
    0xCA: 4, 0xCB: 8,                                           # floats
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,                         # unsigned integers
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,                         # signed integers
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,               # extensions of a fixed size
}  # fmt: skip
_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSION_LENGTH_BYTES: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_COUNT_BYTES: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}

TAG_FIELD: Final = "type"


class NoBoundary(ValueError):
    """The bytes are no msgpack, or not of the expected shape: where a part ends is unknown."""


def split_batch(payload: bytes) -> tuple[bytes, list[bytes]]:
    """The time stamp's bytes and each event's, of a batch that is exactly as long as `payload`.

    Raises NoBoundary.
    """
    items, at = _count(payload, 0, ARRAY_KINDS)
    if items < 2:
        raise NoBoundary("a batch has a time stamp and events")
    ts_start, at = at, _skip(payload, at)
    timestamp = payload[ts_start:at]
    count, at = _count(payload, at, ARRAY_KINDS)
    events = []
    for _ in range(count):
        start, at = at, _skip(payload, at)
        events.append(payload[start:at])
    for _ in range(items - 2):
        at = _skip(payload, at)
    if at != len(payload):
        raise NoBoundary(f"{len(payload) - at} bytes follow the batch")
    return timestamp, events


def is_array(event: bytes) -> bool:
    """Whether an event is a tagged array (to vLLM 0.23) and no map."""
    return event[0] in ARRAY_KINDS


def tag_of(event: bytes) -> str | None:
    """The kind of event, where it names one, in text; None where it names none, or several.

    `event` is one whole msgpack value, as `split_batch` gives it.
    """
    if event[0] in ARRAY_KINDS:
        count, at = _count(event, 0, ARRAY_KINDS)
        return _text(event[at : _skip(event, at)]) if count else None
    if event[0] not in _MAP_KINDS:
        return None
    tags = set()
    pairs, at = _count(event, 0, _MAP_KINDS)
    for _ in range(pairs):
        start, value = at, _skip(event, at)
        at = _skip(event, value)
        if _text(event[start:value]) == TAG_FIELD:
            tags.add(_text(event[value:at]))
    return tags.pop() if len(tags) == 1 else None


def _text(value: bytes) -> str | None:
    kind = value[0]
    start = 1 + _LENGTH_BYTES.get(kind, 0)
    if not (0xA0 <= kind < 0xC0 or kind in (0xD9, 0xDA, 0xDB)):
        return None
    try:
        return value[start:].decode()
    except UnicodeDecodeError:
        return None


def _count(data: bytes, at: int, kinds: frozenset[int]) -> tuple[int, int]:
    """How many items an array, or pairs a map, has, and where the first begins."""
    kind = _byte(data, at)
    if kind not in kinds:
        raise NoBoundary(f"byte {at} begins something else")
    width = _COUNT_BYTES.get(kind, 0)
    return (_number(data, at + 1, width) if width else kind & 0x0F), at + 1 + width


def _skip(data: bytes, at: int) -> int:
    """Where the value that begins at `at` ends."""
    values = 1
    while values:
        values -= 1
        kind = _byte(data, at)
        at += 1
        if kind < 0x80 or kind >= 0xE0:
            continue
        if kind < 0x90:
            values += 2 * (kind & 0x0F)
        elif kind < 0xA0:
            values += kind & 0x0F
        elif kind < 0xC0:
            at += kind & 0x1F
        elif kind in _COUNT_BYTES:
            width = _COUNT_BYTES[kind]
            values += _number(data, at, width) * (2 if kind >= 0xDE else 1)
            at += width
        else:
            at += _payload_bytes(data, kind, at)
        if values > len(data) - at or at > len(data):
            raise NoBoundary("a header promises more than there is")
    return at


def _payload_bytes(data: bytes, kind: int, at: int) -> int:
    """Bytes after the first one, of a value that holds no other value."""
    if kind in _FIXED_BYTES:
        return _FIXED_BYTES[kind]
    if kind in _LENGTH_BYTES:
        width = _LENGTH_BYTES[kind]
        return width + _number(data, at, width)
    if kind in _EXTENSION_LENGTH_BYTES:
        width = _EXTENSION_LENGTH_BYTES[kind]
        return width + 1 + _number(data, at, width)
    raise NoBoundary(f"byte {kind:#x} begins nothing")


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise NoBoundary("the bytes end too early")
    return data[at]


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise NoBoundary("the bytes end too early")
    return int.from_bytes(data[at : at + width], "big")
