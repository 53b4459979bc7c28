"""A cache of tokenized prompts: least recently used first out, bounded in bytes and in age.

Knows keys and ids, no prompt and no endpoint. The clock is the `now` that is passed in.
"""

from array import array
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

OVERHEAD_BYTES: Final = 400
"""Of an entry beside its ids: the key, the array's head, the tuple, its share of the table."""

MAX_AGE_S: Final = 600.0
"""After this long a prompt is tokenized again, so that an engine whose chat template or
tokenizer changed under the same name is not misread for ever."""


class TokenCache:
    """Ids by cache key. `limit_bytes` 0 switches it off. Not thread-safe."""

    def __init__(self, limit_bytes: int, max_age_s: float = MAX_AGE_S) -> None:
        self._limit_bytes = limit_bytes
        self._max_age_s = max_age_s
        self._entries: OrderedDict[bytes, tuple[array[int], float, str]] = OrderedDict()
        self.bytes = 0
        """Size now, at most the limit."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now: float) -> "array[int] | None":
        """The ids of a prompt, or None. A hit is the last to go from then on."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        ids, stored_at, _ = entry
        if now - stored_at > self._max_age_s:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return ids

    def put(self, key: bytes, ids: "array[int]", now: float, model: str = "") -> None:
        """Keep the ids of a prompt for that model; the least recently used go.

        Ids larger than the limit are not kept.
        """
        self._drop(key)
        size = _size(ids)
        if size > self._limit_bytes:
            return
        self._entries[key] = (ids, now, model)
        self.bytes += size
        while self.bytes > self._limit_bytes:
            self._drop(next(iter(self._entries)))

    def drop_models(self, models: Collection[str]) -> None:
        """Forget the prompts of these models. Walks all entries: 1 ms for 10,000."""
        for key in [key for key, entry in self._entries.items() if entry[2] in models]:
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= _size(entry[0])


def _size(ids: "array[int]") -> int:
    return OVERHEAD_BYTES + len(ids) * ids.itemsize
