"""Seeded damage: bytes and values that no honest client or engine would send.

How much of it a test makes is a setting of the tests: `AIBRIX_TEST_SCALE` (1; 10 in
`make acceptance`). `AIBRIX_TEST_SEED` repeats a run; without it every run draws its own, but not
under CI. Both are printed when tests start. A test works in chunks, so that its work is spread over
processes, and one that fails can be repeated alone.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

SCALE: Final = int(os.environ.get("AIBRIX_TEST_SCALE", "1"))
SEED: Final = os.environ["AIBRIX_TEST_SEED"]  # conftest sets it

_STATUS: Final = Path("/proc/self/status")
_RESET_PEAK: Final = Path("/proc/self/clear_refs")


def chunks(count: int) -> list[int]:
    """The numbers of a test's chunks at this scale."""
    return list(range(count * SCALE))


def rng_of(name: str, chunk: int) -> random.Random:
    """The generator of one chunk: its draws depend on the seed of the run and on nothing else."""
    return random.Random(f"{SEED}/{name}/{chunk}")


def peak_bytes() -> int:
    """The most memory that this process has held since the last `bounded_memory` began."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextmanager
def bounded_memory(limit_bytes: int) -> Iterator[None]:
    """At no moment within may the process hold so much more than at the start. Linux only."""
    if not _STATUS.exists():
        yield
        return
    _RESET_PEAK.write_text("5")  # the peak starts at what is held now
    before = peak_bytes()
    yield
    grown = peak_bytes() - before
    assert grown <= limit_bytes, f"{grown} bytes more than at the start"


# -- bytes ----------------------------------------------------------------------------------------

_HEADERS: Final = [
    b"\xdd\xff\xff\xff\xff",  # an array of four billion
    b"\xdf\xff\xff\xff\xff",  # a map of as many
    b"\xc6\xff\xff\xff\xff",  # as many bytes
    b"\xdb\x7f\xff\xff\xff",  # a text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
    b"\xdc\xff\xff",
    b"\xc1",  # never used
    b"\x91" * 600,  # nested deeper than any stack allows a reader to go
]


def damaged_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` with one to four changes; parts of `other` may get in."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(made))
        size = rng.choice([1, 1, 1, 2, 4, 9, 40])
        match rng.randrange(8):
            case 0 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 1:
                made[at : at + size] = rng.randbytes(size)
            case 2:
                made[at:at] = rng.randbytes(size)
            case 3:
                del made[at : at + size]
            case 4:
                del made[at:]
            case 5:
                made[at:at] = made[at : at + 4 * size]
            case 6:
                start = rng.randint(0, len(other))
                made[at : at + 8 * size] = other[start : start + 8 * size]
            case _:
                made[at:at] = rng.choice(_HEADERS)
    return bytes(made)


# -- values ---------------------------------------------------------------------------------------

JUNK: Final[list[Any]] = [
    None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63), 0.0, -1.5, 1e308,
    float("inf"), float("nan"), "", "x", "GPU", "CPU", "\0", "é" * 300, b"", b"\xff" * 32,
    b"\0" * 65, [], [[]], [None], {}, {"type": "BlockStored"}, {"": None}, [0] * 300,
    ["BlockStored"],
]  # fmt: skip
"""Values of every type that msgpack and JSON have, at and over their edges."""


def nested(rng: random.Random) -> Any:
    """A value some thousands of steps deep would not encode: some hundreds are enough."""
    value: Any = rng.choice(JUNK)
    for _ in range(rng.choice([3, 20, 90, 400])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def damaged_value(rng: random.Random, value: Any, other: Any) -> Any:
    """`value` with one place in it changed: of another type, missing, twice, or moved."""
    if not isinstance(value, (list, dict)) or not value or rng.random() < 0.1:
        return _replacement(rng, value, other)
    if isinstance(value, dict):
        return _damaged_map(rng, dict(value), other)
    items = list(value)
    at = rng.randrange(len(items))
    match rng.randrange(8):
        case 0:
            del items[at]
        case 1:
            items.insert(at, items[rng.randrange(len(items))])
        case 2:
            items.insert(at, _replacement(rng, items[at], other))
        case 3:
            items = items * rng.choice([2, 30])
        case 4:
            rng.shuffle(items)
        case _:
            items[at] = damaged_value(rng, items[at], other)
    return items


def _damaged_map(rng: random.Random, fields: dict[Any, Any], other: Any) -> dict[Any, Any]:
    name = rng.choice(list(fields))
    match rng.randrange(8):
        case 0:
            del fields[name]
        case 1:
            fields[rng.choice(["", "new", 7])] = fields.pop(name)
        case 2:
            another = rng.choice(list(fields))
            fields[name], fields[another] = fields[another], fields[name]
        case 3 if isinstance(other, dict) and other:
            taken = rng.choice(list(other))
            fields[taken] = other[taken]
        case _:
            fields[name] = damaged_value(rng, fields[name], other)
    return fields


def _replacement(rng: random.Random, value: Any, other: Any) -> Any:
    match rng.randrange(8):
        case 0:
            return nested(rng)
        case 1:
            return [value]
        case 2:
            return str(value)[:50]
        case 3:
            return other
        case 4 if type(value) is int:
            return value + rng.choice([-1, 1, 1 << 16, 1 << 32])
        case _:
            return rng.choice(JUNK)


def damaged_payload(rng: random.Random, payload: bytes, other: bytes) -> bytes:
    """A batch of events with one or two values changed, or some bytes, or both.

    Mostly inside an event: a batch that cannot be read at all says little of its reader.
    """
    made = payload
    if rng.random() < 0.75:
        value, stranger = msgspec.msgpack.decode(payload), msgspec.msgpack.decode(other)
        events, strangers = value[1], stranger[1]
        for _ in range(rng.randint(1, 2)):
            if rng.random() < 0.1:
                value = damaged_value(rng, value, stranger)
                break
            at = rng.randrange(len(events))
            events[at] = damaged_value(rng, events[at], rng.choice(strangers))
        with suppress(OverflowError, RecursionError):  # numbers beyond msgpack's
            made = msgspec.msgpack.encode(value)
    if made == payload or rng.random() < 0.1:
        made = damaged_bytes(rng, made, other)
    return made
