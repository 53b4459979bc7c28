"""The terminal: keys read one by one, and the screen given back as it was found.

Owns the mode of the terminal. Knows no view.
"""

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TextIO

_PAGE_DOWN, _PAGE_UP = b"\x1b[6~", b"\x1b[5~"
_ALIASES = {_PAGE_DOWN: "n", _PAGE_UP: "p", b" ": "n", b"\x1b[B": "n", b"\x1b[A": "p"}


class Keys:
    """What is typed, while `reading` lasts."""

    def __init__(self, stream: TextIO = sys.stdin) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keys come at once and are not echoed; afterwards the terminal is as it was.

        Where standard input is no terminal, no key ever comes.
        """
        if not self._stream.isatty():
            yield
            return
        descriptor = self._stream.fileno()
        before = termios.tcgetattr(descriptor)
        try:
            tty.setcbreak(descriptor)
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    def wait(self, timeout_s: float) -> str | None:
        """The next key within this time: one character; None where none came.

        Page up and down, arrows and the space are `p` and `n`. The end of the input is `q`.
        """
        readable = [self._stream] if self._stream.isatty() else []
        ready, _, _ = select.select(readable, [], [], max(0.0, timeout_s))
        if not ready:
            return None
        typed = os.read(self._stream.fileno(), 8)
        if not typed:
            return "q"
        return _ALIASES.get(typed, typed[:1].decode("ascii", "replace"))
