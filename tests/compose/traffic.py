"""Requests through the project's Envoy: single ones, and a steady load in the background.

Owns sending and what became of each. The load is that of the end-to-end tests (`tests.e2e.load`),
in a thread of its own, so that Docker's commands may take their time meanwhile.
"""

import asyncio
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from tests.compose.docker_engine import Failed
from tests.compose.project import GATEWAY
from tests.e2e.load import Load, Sent

RATE: Final = 20.0
"""Requests a second: less than what two cores carry, so that nothing queues."""
ANSWER_TOKENS: Final = 40
"""Of 5 ms each: some requests are always in flight."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request."""

    request_id: str
    cached_tokens: int


def ask(messages: list[dict[str, Any]]) -> Answer:
    """One chat. Raises Failed where it is not answered."""
    body = json.dumps({"model": "tiny", "max_tokens": 4, "messages": messages})
    connection = http.client.HTTPConnection(urlsplit(GATEWAY).netloc, timeout=30)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        raise Failed(f"status {reply.status}: {content[:300]!r}")
    details = json.loads(content)["usage"]["prompt_tokens_details"]
    return Answer(reply.headers["request-id"], details["cached_tokens"])


class _Longer(Load):
    """With answers that take a while."""

    def _body(self) -> dict[str, Any]:
        return super()._body() | {"max_tokens": ANSWER_TOKENS}


class Running:
    """A load that runs."""

    def __init__(self, load: Load) -> None:
        self._load = load

    @property
    def sent(self) -> int:
        """Requests so far."""
        return len(self._load.sent)

    def more(self, requests: int, timeout_s: float = 60.0) -> None:
        """Wait until so many further requests have been answered, or have failed."""
        begun = time.monotonic()
        seen = self.ended
        while self.ended < seen + requests:
            if time.monotonic() > begun + timeout_s:
                raise Failed(f"{self.ended - seen} of {requests} requests within {timeout_s} s")
            time.sleep(0.05)

    @property
    def ended(self) -> int:
        """Requests that have ended, well or not."""
        return sum(1 for one in self._load.sent if one.ended)

    def failures(self) -> list[Sent]:
        """Those that were not answered in full."""
        return [one for one in self._load.sent if one.trouble is not None]


@contextmanager
def steady(seed: int) -> Iterator[Running]:
    """Load while inside; every request has ended behind it."""
    load: list[Load] = []
    ready, stop = threading.Event(), threading.Event()

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            load.append(_Longer("compose", GATEWAY, RATE, random.Random(seed), session))
            load[0].start()
            ready.set()
            await asyncio.to_thread(stop.wait)
            await load[0].stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="load")
    thread.start()
    try:
        ready.wait(10)
        yield Running(load[0])
    finally:
        stop.set()
        thread.join()


def none_failed(running: Running) -> None:
    """Raises Failed with the first failures, where there are any."""
    failed = running.failures()
    if failed:
        shown = "; ".join(str(one.trouble) for one in failed[:3])
        raise Failed(f"{len(failed)} of {running.sent} requests failed: {shown}")


def only_in_flight(running: Running, before: float, after: float) -> int:
    """How many failed, all of which were under way when a fault came, between these times.

    Raises Failed where another one did.
    """
    failed = running.failures()
    other = [one for one in failed if one.began > after or one.ended < before]
    if other:
        late = f"{other[0].began - after:+.2f} s after the fault: {other[0].trouble}"
        raise Failed(f"{len(other)} requests failed that the fault did not meet, one {late}")
    return len(failed)
