"""Whether pods take connections on their API port, asked while somebody looks at the page.

Event sync knows at once that an engine's process has ended, but not of a pod without events, nor
of a machine that was cut off without a word. A pod that is gone is to be seen within 2 s: a
connection is opened to each and closed again, nothing is sent. Knows no pod, only addresses. The
answers change nothing about routing.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

from aibrix_extproc import background

ROUND_S: Final = 0.6
"""Each pod is asked once in this time, as long as there are no more than `PER_S` allows."""
PER_S: Final = 400
"""Connections opened in a second; with more pods than these rounds take longer."""
TRY_S: Final = 0.35
"""One try may last so long. There are two, so that one lost packet is no lost pod."""
_BATCH: Final = 8
"""Asked at once: a round is spread over its time, so that no request waits for all of it."""


class Reach:
    """Asks from `start` to `stop`."""

    def __init__(self, addresses: Callable[[], Sequence[str]]) -> None:
        """`addresses`: `ip:port` of each pod, now."""
        self._addresses = addresses
        self._task: asyncio.Task[None] | None = None
        self.answers: dict[str, bool] = {}
        """Address → whether it took the last connection."""
        self._asking: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin. Nothing is known of anybody at first."""
        self.answers.clear()
        self._task = asyncio.create_task(self._ask_on())

    async def stop(self) -> None:
        """End it. Harmless where it was not started."""
        task, self._task = self._task, None
        await background.end(task)
        await background.end(*self._asking.values())
        self._asking.clear()

    async def _ask_on(self) -> None:
        while True:
            addresses = list(dict.fromkeys(self._addresses()))
            known = set(addresses)
            for gone in [address for address in self.answers if address not in known]:
                del self.answers[gone]
            batches = [addresses[n : n + _BATCH] for n in range(0, len(addresses), _BATCH)] or [[]]
            pause_s = max(ROUND_S, len(addresses) / PER_S) / len(batches)
            for batch in batches:
                for address in batch:
                    # A round waits for nobody: who is still being asked is not asked again.
                    if address not in self._asking:
                        self._asking[address] = asyncio.create_task(self._ask(address))
                await asyncio.sleep(pause_s)

    async def _ask(self, address: str) -> None:
        try:
            self.answers[address] = await takes_connection(address)
        finally:
            self._asking.pop(address, None)


async def takes_connection(address: str) -> bool:
    """Whether a connection to `ip:port` came to be, by the second try at the latest."""
    host, _, port = address.rpartition(":")
    for _ in range(2):
        try:
            async with asyncio.timeout(TRY_S):
                await _connect(host.strip("[]"), int(port))
        except TimeoutError:
            continue
        except (OSError, ValueError, OverflowError):
            return False
        return True
    return False


async def _connect(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as one:
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, (host, port))
