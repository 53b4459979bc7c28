"""The calls for one prompt: mostly one, and another beside it where an endpoint stands still.

Owns the rule of when an endpoint stands still, and what becomes of the calls that lost. Knows
neither what is asked nor what an answer means; it is given the time.

When an endpoint stands still is for `Endpoint.stands_still`. A long prompt at an idle endpoint may
be taken for that: then another is asked beside it, its own call goes on, and its answer ends the
suspicion.
"""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aibrix_extproc.tokenizer.endpoints import Endpoint
from aibrix_extproc.tokenizer.types import Tokens

STALL_SHARE: Final = 0.25
"""Of the time that a decision has: the least silence that counts as standing still, after which
another endpoint can still answer in time."""

_LATE: Final = 1.5
"""A timer this many times late says that our own event loop stood still."""


@dataclass(slots=True, eq=False)
class _Entry:
    endpoint: Endpoint
    began: float
    is_stalled: bool = False


class Race:
    """Attempts under way for one prompt. Call `leave` at the end, whatever it was."""

    def __init__(self, decision_s: float) -> None:
        """`decision_s`: the time that a decision has."""
        self._stall_s = STALL_SHARE * decision_s
        self._most_s = decision_s
        self._under_way: dict[asyncio.Task[Tokens], _Entry] = {}
        self.stalls = 0
        """Entries whose endpoint stood still."""

    def __len__(self) -> int:
        return len(self._under_way)

    def enter(
        self, endpoint: Endpoint, attempt: Coroutine[Any, Any, Tokens]
    ) -> "asyncio.Task[Tokens]":
        """Begin one more attempt."""
        task = asyncio.create_task(attempt)
        self._under_way[task] = _Entry(endpoint, time.monotonic())
        return task

    async def next(self) -> "Tokens | list[Endpoint]":
        """The tokens of the first attempt that ends, or the endpoints found to stand still.

        Raises what that attempt raised. It is out of the race then.
        """
        while True:
            since = time.monotonic()
            done, _ = await asyncio.wait(
                self._under_way, timeout=self._stall_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                del self._under_way[task]
                return task.result()
            now = time.monotonic()
            if now - since < _LATE * self._stall_s and (stalled := self._stalled(now)):
                return stalled

    def _stalled(self, now: float) -> list[Endpoint]:
        found = []
        for entry in self._under_way.values():
            if not entry.is_stalled and entry.endpoint.stands_still(
                entry.began, now, self._stall_s, self._most_s
            ):
                entry.is_stalled = True
                self.stalls += 1
                found.append(entry.endpoint)
        return found

    def leave(self) -> None:
        """End what is under way; at an endpoint that stands still one call goes on as a witness.

        Its answer shows that the endpoint works after all, its time-out that it does not.
        """
        for task, entry in self._under_way.items():
            endpoint = entry.endpoint
            if entry.is_stalled and not endpoint.has_witness:
                endpoint.has_witness = True
                task.add_done_callback(partial(_dismiss, endpoint))
            else:
                task.cancel()
        self._under_way.clear()


def _dismiss(endpoint: Endpoint, _: "asyncio.Task[Tokens]") -> None:
    endpoint.has_witness = False
