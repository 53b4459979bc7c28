"""The last batches of one source, kept only while somebody wants to look back at them.

Owns the memory of payloads, in the order in which they reached the index. Knows nothing of what
they say. Written by the source's reader thread just before a batch is applied, read by others.
"""

import threading
from collections import deque
from typing import Final

from aibrix_extproc.kvevents.effects import Apply, Clear, Effect
from aibrix_extproc.kvevents.tap import Tap

LIMIT_BYTES: Final = 1024 * 1024
"""Of one source: a second of an engine that computes 100,000 tokens a second."""


class Recent(Tap):
    """Batches since the first who wants them began to. Safe from any thread."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._kept: deque[bytes | None] = deque()
        self._bytes = 0
        self._next = 0
        """Number of the next batch; those kept end before it."""
        self._wanted = 0

    def effect(self, effect: Effect) -> None:
        """A batch is about to be applied, or what is held to be dropped."""
        if not self._wanted:
            return
        if isinstance(effect, Apply):
            self._keep(effect.payload)
        elif isinstance(effect, Clear):
            self._keep(None)

    def open(self) -> int:
        """Keep batches from now on, until `close`. Returns the number of the next one."""
        with self._lock:
            self._wanted += 1
            return self._next

    def close(self) -> None:
        """Whoever called `open` wants them no more. With the last one all go."""
        with self._lock:
            self._wanted -= 1
            if not self._wanted:
                self._kept.clear()
                self._bytes = 0

    @property
    def position(self) -> int:
        """The number of the next batch."""
        return self._next

    def since(self, position: int) -> list[bytes | None] | None:
        """The payloads from this number on, the oldest first; None in the place of a payload:
        the source was emptied there. None: some of them are no longer kept."""
        with self._lock:
            missing = position - (self._next - len(self._kept))
            return list(self._kept)[missing:] if missing >= 0 else None

    def _keep(self, payload: bytes | None) -> None:
        with self._lock:
            self._kept.append(payload)
            self._next += 1
            self._bytes += len(payload or b"")
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._kept.popleft() or b"")
