"""Questions to engines, beside the path of requests: what a text's tokens are, what was reused.

Owns the bounded HTTP calls (one pod's answer at a time, a few pods at once) and their failures,
each counted and told once. What answers mean is for `fingerprints` and `counters`. The texts sent
are fixed ones of this package.
"""

import asyncio
import json
import logging
from array import array
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from aibrix_extproc.agreement.counters import Counted, read_counters
from aibrix_extproc.agreement.fingerprints import CHAT, TEXT, Fingerprint, digest, ids_of
from aibrix_extproc.kvevents.capacity import Capacity, read_capacities
from aibrix_extproc.kvusage.page import read_usage
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics

_TIMEOUT_S: Final = 5.0
_AT_ONCE: Final = 8
_MAX_REPLY_BYTES: Final = 8 * 1024 * 1024
"""vLLM's `/metrics` has some 100 KB for each rank."""
_WILL_NOT: Final = (400, 404, 405, 422, 501)
"""A model without a chat template, or one that is not served here: an answer, no failure."""


class AskFailed(Exception):
    """No answer that can be read; `reason` is a label of a metric."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class EngineAsker:
    """Asks engines. `start` and `close` on the event loop that uses it."""

    def __init__(
        self, metrics: Metrics, timeout_s: float = _TIMEOUT_S, at_once: int = _AT_ONCE
    ) -> None:
        """`timeout_s`: of one answer; `at_once`: pods that are asked at one time."""
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._at_once = at_once
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(at_once)
        self._states = StateLog(logging.getLogger("aibrix_extproc.agreement"))

    async def start(self) -> None:
        """Open the client; nothing is connected yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._at_once, keepalive_timeout=2.0),
            headers={"Accept-Encoding": "identity", "User-Agent": "aibrix-extproc"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def fingerprint(self, who: str, base_url: str, model: str) -> Fingerprint | None:
        """What a tokenizer makes of the fixed text and chat; None: it could not be asked."""
        try:
            text = await self._ids(base_url, {"model": model, "prompt": TEXT})
            chat = await self._ids(base_url, {"model": model, "messages": list(CHAT)})
        except AskFailed as error:
            self._failed(f"tokens of {who}", error)
            return None
        self._states.changed(f"tokens of {who}", "ok")
        return Fingerprint(
            None if text is None else digest(text), None if chat is None else digest(chat)
        )

    async def counters(
        self, who: str, address: str, see: Callable[[bytes], None] = lambda page: None
    ) -> Counted | None:
        """An engine's own count of looked-up and reused tokens; None: it could not be had.

        `see(page)` is given the whole of its metrics.
        """
        try:
            body = await self._metrics_page(address)
            see(body)
            counted = read_counters(body)
            if counted is None:
                raise AskFailed("metrics_none", "/metrics has no counters of the prefix cache")
        except AskFailed as error:
            self._failed(f"counters of {who}", error)
            return None
        self._states.changed(f"counters of {who}", "ok")
        return counted

    async def usage(
        self, who: str, address: str
    ) -> tuple[Mapping[int, float], Mapping[int, Capacity]] | None:
        """By rank: how full an engine's caches are, and how large. None: it could not be had."""
        try:
            body = await self._metrics_page(address)
            used = read_usage(body)
            if not used:
                raise AskFailed("usage_none", "/metrics does not say how full the KV cache is")
        except AskFailed as error:
            self._failed(f"KV cache use of {who}", error)
            return None
        self._states.changed(f"KV cache use of {who}", "ok")
        return used, read_capacities(body)

    async def _metrics_page(self, address: str) -> bytes:
        status, body = await self._call("GET", f"http://{address}/metrics", None)
        if status != 200:
            raise AskFailed("metrics_status", f"/metrics answered {status}")
        return body

    def forget(self, who: str) -> None:
        """It is gone."""
        for what in ("tokens", "counters", "KV cache use"):
            self._states.forget(f"{what} of {who}")

    async def _ids(self, base_url: str, body: Mapping[str, Any]) -> "array[int] | None":
        """None where the engine says that it will not tokenize this."""
        status, reply = await self._call("POST", f"{base_url}/tokenize", json.dumps(body).encode())
        if status in _WILL_NOT:
            return None
        if status != 200:
            raise AskFailed("tokenize_status", f"/tokenize answered {status}")
        ids = ids_of(reply)
        if ids is None:
            raise AskFailed("tokenize_reply", "no tokens in the reply of /tokenize")
        return ids

    async def _call(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        kind = "metrics" if method == "GET" else "tokenize"
        if self._session is None:
            raise AskFailed("closed", "this server is stopping")
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with (
                self._slots,
                asyncio.timeout(self._timeout_s),
                self._session.request(
                    method, url, data=body, headers=headers, allow_redirects=False
                ) as reply,
            ):
                read = bytearray()
                async for piece in reply.content.iter_any():
                    read += piece
                    if len(read) > _MAX_REPLY_BYTES:
                        raise AskFailed(f"{kind}_too_large", f"{url} sends too much")
                return reply.status, bytes(read)
        except TimeoutError:
            why = f"no answer within {self._timeout_s:g} s"
            raise AskFailed(f"{kind}_timeout", why) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AskFailed(
                f"{kind}_connection", f"{type(error).__name__}: {error}"[:200]
            ) from None

    def _failed(self, thing: str, error: AskFailed) -> None:
        self._metrics.agreement_errors.labels(error.reason).inc()
        self._states.changed(thing, error.reason, str(error), logging.INFO)
