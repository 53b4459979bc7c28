"""What a person sees of a run while it goes on: one line, written anew.

Owns the words. Cheap on purpose: it shares the generator's process and must make no request late.
"""

import asyncio
import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from aibrix_extproc.loadtest.runner import NOT_SENT, OpenLoop, Sent

_ON_TERMINAL_S: Final = 0.5
_ELSEWHERE_S: Final = 10.0
_RECENT: Final = 200
"""Requests whose median TTFT is shown."""


class Progress:
    """Counts what ended. `line` says it."""

    def __init__(self, name: str, requests: int) -> None:
        self._name = name
        self._requests = requests
        self._ended = self._errors = self._not_sent = 0
        self._prompt_tokens = self._cached_tokens = 0
        self._ttft_s: deque[float] = deque(maxlen=_RECENT)

    def note(self, sent: Sent) -> None:
        """A request has ended."""
        outcome = sent.outcome
        self._ended += 1
        self._errors += outcome.error is not None
        self._not_sent += outcome.error == NOT_SENT
        self._prompt_tokens += outcome.prompt_tokens
        self._cached_tokens += outcome.cached_tokens or 0
        if outcome.ttft_s is not None:
            self._ttft_s.append(sent.sent_s + outcome.ttft_s - sent.intended_s)

    def line(self, now_s: float, under_way: int) -> str:
        """One line without its end."""
        parts = [f"{self._ended} of {self._requests} ended", f"{under_way} open"]
        parts.append(f"{self._errors} errors")
        if self._not_sent:
            parts.append(f"{self._not_sent} NOT SENT: raise --max-open")
        if self._prompt_tokens:
            parts.append(f"hit ratio {100 * self._cached_tokens / self._prompt_tokens:.1f} %")
        if self._ttft_s:
            parts.append(f"TTFT {1e3 * statistics.median(self._ttft_s):.0f} ms")
        return f"{self._name}  {now_s:.0f} s: {', '.join(parts)}"


@contextmanager
def shown(name: str, loop: OpenLoop, requests: int, stream: TextIO) -> Iterator[None]:
    """Show a run on `stream` while the block lasts, and how it ended."""
    progress = Progress(name, requests)
    loop.on_sent = progress.note
    terminal = stream.isatty()

    async def keep_showing() -> None:
        while True:
            await asyncio.sleep(_ON_TERMINAL_S if terminal else _ELSEWHERE_S)
            _write(stream, progress.line(loop.now_s, loop.open), terminal)

    task = asyncio.get_running_loop().create_task(keep_showing())
    try:
        yield
    finally:
        task.cancel()
        _write(stream, progress.line(loop.now_s, loop.open), terminal)
        if terminal:
            print(file=stream)


def _write(stream: TextIO, line: str, terminal: bool) -> None:
    if terminal:
        print(f"\r\x1b[2K{line}", end="", file=stream, flush=True)
    else:
        print(line, file=stream, flush=True)
