"""Who may look into the index, and for how long it may be changed at a stretch.

Many threads change the index, one at a time; a request must not wait for more than one stretch
of `STRETCH_BLOCKS` blocks. A plain lock does not give that: whoever releases it can have it back
before a thread that waits has even woken up. Here a change waits for as long as a look waits, so
a look goes in after the stretch that it found under way.

Knows nothing of what is guarded. There is one gate and nothing is taken while it is held, so no
order of locks can be wrong.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final

STRETCH_BLOCKS: Final = 256


class Gate:
    """Mutual exclusion in which a look (short) goes before a change (in stretches)."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free_for_look = threading.Condition(self._mutex)
        self._free_for_change = threading.Condition(self._mutex)
        self._held = False
        self._looks_waiting = 0
        self._changes_waiting = 0

    @contextmanager
    def look(self) -> Iterator[None]:
        """Alone with the guarded data, after the one stretch under way, before all others."""
        with self._mutex:
            self._looks_waiting += 1
            try:
                while self._held:
                    self._free_for_look.wait()
            finally:
                self._looks_waiting -= 1
            self._held = True
        try:
            yield
        finally:
            self.leave()

    def change(self) -> "Change":
        """A context manager: alone with the guarded data, for one stretch after another."""
        return Change(self)

    def enter_for_change(self) -> None:
        """Wait until nobody is in and no look waits."""
        with self._mutex:
            if self._held or self._looks_waiting:
                self._wait_for_change()
            self._held = True

    def _wait_for_change(self) -> None:
        self._changes_waiting += 1
        try:
            while self._held or self._looks_waiting:
                self._free_for_change.wait()
        finally:
            self._changes_waiting -= 1

    def leave(self) -> None:
        """Let the next one in: a look where one waits."""
        with self._mutex:
            self._held = False
            if self._looks_waiting:
                self._free_for_look.notify()
            elif self._changes_waiting:
                self._free_for_change.notify()


class Change:
    """One change under way. `left` is how many more blocks this stretch may touch.

    Whoever touches a block lowers `left`, and calls `pause` where it is down to 0. Everything
    may be different after a pause.
    """

    __slots__ = ("_gate", "left")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.left = STRETCH_BLOCKS

    def __enter__(self) -> "Change":
        self._gate.enter_for_change()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._gate.leave()

    def pause(self) -> None:
        """End this stretch, let in whoever waits, begin the next one."""
        self._gate.leave()
        self._gate.enter_for_change()
        self.left = STRETCH_BLOCKS
