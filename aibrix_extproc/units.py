"""Durations and sizes as people write them in the environment.

Owns the two notations (`500ms`, `16MiB`) and nothing else: what a value is for, and
whether zero is allowed, is for `settings`.
"""

import re
from typing import Final

_SECONDS_PER_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES_PER_UNIT: Final = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
}
_MAX_SIZE_BYTES: Final = 1e15
"""Above it a float misses single bytes, and no machine has so many."""
_NUMBER: Final = r"(\d+(?:\.\d+)?|\.\d+)"
_DURATION: Final = re.compile(rf"{_NUMBER}(ms|s|m|h)")
_SIZE: Final = re.compile(rf"{_NUMBER}\s*([kmg]i?)?b?", re.IGNORECASE)


def parse_duration_s(text: str) -> float:
    """Seconds from `500ms`, `1s`, `1m30s`, `2h` or a plain number of seconds (`0.5`).

    Raises ValueError with a message that shows the notation.
    """
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        raise ValueError(f"{text!r} is not a duration: write 500ms, 1s, 5m or plain seconds (0.5)")
    return sum(float(part.group(1)) * _SECONDS_PER_UNIT[part.group(2)] for part in parts)


def parse_size_bytes(text: str) -> int:
    """Bytes from `16777216`, `16MiB`, `16Mi` or `16M` (the last is 16,000,000).

    Raises ValueError with a message that shows the notation.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 16777216, 16MiB or 16M")
    size_bytes = float(match.group(1)) * _BYTES_PER_UNIT[(match.group(2) or "").lower()]
    if size_bytes > _MAX_SIZE_BYTES:
        raise ValueError(f"{text[:40]!r} is above {_MAX_SIZE_BYTES:.0e} bytes")
    return int(size_bytes)
