"""Requests at a steady rate, whatever becomes of those before them, and what became of each.

Open loop: a gateway that stands still is asked on. Prompts are conversations that come again, so
that there is something to be held, and new ones, so that the tokenizer is needed.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

CLIENT_TIMEOUT_S: Final = 30.0
_CONVERSATIONS: Final = 40


@dataclass(slots=True)
class Sent:
    """One request. Times are monotonic."""

    began: float
    ended: float = 0.0
    trouble: str | None = None
    """None: answered in full."""


@dataclass(frozen=True, slots=True)
class Excuse:
    """A fault by which requests of some gates may fail."""

    why: str
    gates: frozenset[str]
    began: float
    ended: float
    in_flight_only: bool
    """Only those that were under way as it began (and what left just then)."""

    def covers(self, gate: str, sent: Sent) -> bool:
        """Whether this fault can be why the request failed."""
        if gate not in self.gates or sent.ended < self.began:
            return False
        return sent.began <= self.began + 0.1 if self.in_flight_only else sent.began <= self.ended


@dataclass
class Load:
    """Load on one gate: `async with load.running(): …`."""

    gate: str
    url: str
    rate: float
    rng: random.Random
    session: aiohttp.ClientSession
    sent: list[Sent] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """How late each request left, by the schedule: what the harness itself cannot do."""
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _sender: "asyncio.Task[None] | None" = None

    def start(self) -> None:
        self._sender = asyncio.create_task(self._send())

    async def stop(self) -> None:
        """Send no more, and wait for every answer."""
        assert self._sender is not None
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)
        while self._tasks:
            await asyncio.gather(*self._tasks)

    def failures(self, excuses: list[Excuse]) -> tuple[list[Sent], list[Sent]]:
        """Failed requests: those that no excuse covers, and those that one does."""
        failed = [one for one in self.sent if one.trouble is not None]
        bad = [s for s in failed if not any(e.covers(self.gate, s) for e in excuses)]
        return bad, [one for one in failed if one not in bad]

    async def _send(self) -> None:
        start = time.monotonic()
        number = 0
        while True:
            due = start + number / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late_s.append(time.monotonic() - due)
            task = asyncio.create_task(self._ask(self._body()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1

    def _body(self) -> dict[str, Any]:
        conversation = self.rng.randrange(_CONVERSATIONS)
        words = " ".join(f"c{conversation}w{word}" for word in range(60))
        asked = f"question {self.rng.getrandbits(40) if self.rng.random() < 0.7 else 0}"
        messages = [{"role": "system", "content": words}, {"role": "user", "content": asked}]
        return {"model": "tiny", "messages": messages, "max_tokens": 4, "stream": True}

    async def _ask(self, body: dict[str, Any]) -> None:
        one = Sent(time.monotonic())
        self.sent.append(one)
        try:
            async with self.session.post(
                f"{self.url}/v1/chat/completions",
                json=body,
                timeout=aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_S),
            ) as reply:
                content = await reply.read()
                if reply.status != 200:
                    one.trouble = f"status {reply.status}: {content[:120]!r}"
                elif not content.rstrip().endswith(b"data: [DONE]"):
                    one.trouble = f"cut off: {content[-60:]!r}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            one.trouble = repr(error)[:160]
        one.ended = time.monotonic()


@contextmanager
def noted(excuses: list[Excuse], why: str, *gates: str, in_flight_only: bool) -> Iterator[None]:
    """What fails inside the block, or was under way as it began, is excused."""
    began = time.monotonic()
    try:
        yield
    finally:
        excuses.append(Excuse(why, frozenset(gates), began, time.monotonic(), in_flight_only))
