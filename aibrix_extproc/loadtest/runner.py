"""Sends sessions open-loop: each begins at its time, whatever became of those before it.

Owns when a request is due, how late it left, and how many may be open. A session's next turn is
due its time to think after the answer to the turn before. Latency counts from when a request was
due. Knows neither what a result means nor how it is shown.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.loadtest.client import Outcome
from aibrix_extproc.loadtest.talk import Ask, Style, Talk
from aibrix_extproc.workloads.sessions import Session

SESSION_HEADER: Final = "x-session-id"
INTERRUPTED: Final = "interrupted"
NOT_SENT: Final = "not sent: as many were open as may be"
_READY: Final = 32
"""As many requests are made before they are due."""
_LEAD_S: Final = 0.1

Send = Callable[[bytes, str, Mapping[str, str]], Awaitable[Outcome]]
"""Body, path and headers in; never an exception out."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request. Times in seconds since the start of the run."""

    session: str
    turn: int
    intended_s: float
    """When it was due."""
    sent_s: float
    """When it left. Later than due: by what the generator itself was late."""
    outcome: Outcome


class OpenLoop:
    """One run. `run` it once; `stop` ends it early."""

    def __init__(
        self,
        send: Send,
        style: Style,
        max_open: int,
    ) -> None:
        self._send = send
        self._style = style
        self._max_open = max_open
        self._start_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self.on_sent: Callable[[Sent], None] = lambda sent: None
        """Called with each request once it has ended."""
        self.open = 0
        """Requests under way."""
        self.started_unix_s = 0.0
        """When the run began, in seconds since 1970."""
        self.sent: list[Sent] = []
        """Those that have ended, in the order in which they did."""

    @property
    def now_s(self) -> float:
        """Seconds since the start; 0 before it."""
        return time.perf_counter() - self._start_s if self._start_s else 0.0

    async def run(self, sessions: Iterable[Session]) -> None:
        """Until every turn of every session has ended, or `stop` is called."""
        self._start_s = time.perf_counter() + _LEAD_S
        self.started_unix_s = time.time() + _LEAD_S
        beginning = asyncio.create_task(self._begin(sessions))
        ending = asyncio.create_task(self._stopped.wait())
        await asyncio.wait((beginning, ending), return_when=asyncio.FIRST_COMPLETED)
        while self._tasks and not self._stopped.is_set():
            whole = asyncio.ensure_future(asyncio.wait(tuple(self._tasks)))
            await asyncio.wait((whole, ending), return_when=asyncio.FIRST_COMPLETED)
        for task in (beginning, ending, *self._tasks):
            task.cancel()
        await asyncio.gather(beginning, ending, *self._tasks, return_exceptions=True)

    def stop(self) -> None:
        """Send no more, and give up what is open: it counts as interrupted."""
        self._stopped.set()

    async def _begin(self, sessions: Iterable[Session]) -> None:
        """In order: what is due at one moment leaves as it stands in the workload. The first
        requests are made while nothing is due."""
        coming = iter(sessions)
        ready: deque[tuple[Session, Talk, Ask]] = deque()
        while True:
            while len(ready) < _READY and (not ready or ready[0][0].start_s > self.now_s):
                session = next(coming, None)
                if session is None:
                    break
                talk = Talk(session, self._style)
                ready.append((session, talk, talk.ask()))
            if not ready:
                return
            await self._until(ready[0][0].start_s)
            task = asyncio.create_task(self._session(*ready.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _session(self, session: Session, talk: Talk, ask: Ask) -> None:
        headers = {SESSION_HEADER: session.id} if session.id else {}
        due_s = session.start_s
        for place, turn in enumerate(session.turns):
            if place:
                ask, due_s = talk.ask(), due_s + turn.think_s
                await self._until(due_s)
            sent = await self._one(session, place, due_s, ask.body, ask.path, headers)
            due_s = self.now_s
            talk.heard(sent.outcome.answer)

    async def _one(
        self,
        session: Session,
        place: int,
        due_s: float,
        body: bytes,
        path: str,
        headers: Mapping[str, str],
    ) -> Sent:
        left_s = self.now_s
        if self.open >= self._max_open:
            return self._keep(Sent(session.id, place, due_s, left_s, Outcome(error=NOT_SENT)))
        self.open += 1
        try:
            outcome = await self._send(body, path, headers)
        except asyncio.CancelledError:
            cut = Outcome(error=INTERRUPTED, duration_s=self.now_s - left_s)
            self._keep(Sent(session.id, place, due_s, left_s, cut))
            raise
        finally:
            self.open -= 1
        return self._keep(Sent(session.id, place, due_s, left_s, outcome))

    def _keep(self, sent: Sent) -> Sent:
        self.sent.append(sent)
        self.on_sent(sent)
        return sent

    async def _until(self, due_s: float) -> None:
        wait_s = due_s - self.now_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
