"""One chat request over HTTP, answered as a stream, and what was seen of it.

Owns the reading of an answer and its times. Knows neither the workload nor other requests.
A request that fails is a result with `error` set, never an exception.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec

from aibrix_extproc.loadtest.sse import EventStream

SILENCE_LIMIT_S: Final = 120.0
"""Between two pieces of an answer; above it the request counts as failed."""


@dataclass(slots=True)
class Outcome:
    """One request. Times in seconds from its start; tokens as the engine's `usage` says."""

    error: str | None = None
    """A short reason, the same for the same trouble; None: answered in full."""
    ttft_s: float | None = None
    """To the first piece of text."""
    duration_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens that the engine says it reused; None: it does not say."""
    answer_tokens: int = 0
    answer: str = ""


class ChatClient:
    """Sends chats to one gateway. `url` is its root, without `/v1`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str] | None = None,
        silence_limit_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._silence_limit_s = silence_limit_s
        self._session = session
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})

    async def first_model(self) -> str:
        """The first name that `/v1/models` lists. Raises aiohttp.ClientError, or ValueError."""
        async with self._session.get(f"{self._url}/v1/models", headers=self._headers) as reply:
            reply.raise_for_status()
            listing = await reply.json(content_type=None)
        try:
            return str(listing["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ValueError("/v1/models lists no model") from None

    async def chat(self, model: str, messages: list[dict[str, str]], answer_tokens: int) -> Outcome:
        """Send one chat and read its answer to the end."""
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        outcome = Outcome()
        start = time.perf_counter()
        try:
            await self._read(body, outcome, start)
        except TimeoutError:
            outcome.error = f"silent for {self._silence_limit_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            outcome.error = type(error).__name__
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError, IndexError):
            outcome.error = "the stream is not OpenAI's"
        outcome.duration_s = time.perf_counter() - start
        return outcome

    async def _read(self, body: dict[str, Any], outcome: Outcome, start: float) -> None:
        async with self._session.post(
            f"{self._url}/v1/chat/completions",
            json=body,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_read=self._silence_limit_s),
        ) as reply:
            if reply.status != 200:
                outcome.error = f"HTTP {reply.status}"
                return
            events = EventStream()
            async for received in reply.content.iter_any():
                for data in events.feed(received):
                    if data == "[DONE]":
                        return
                    _read_chunk(msgspec.json.decode(data), outcome, start)
                    if outcome.error:
                        return
        outcome.error = "the stream ended early"


def _read_chunk(chunk: Any, outcome: Outcome, start: float) -> None:
    if "error" in chunk:
        outcome.error = f"error in the stream ({chunk['error'].get('code')})"
        return
    for choice in chunk["choices"]:
        text = choice["delta"].get("content")
        if text:
            if outcome.ttft_s is None:
                outcome.ttft_s = time.perf_counter() - start
            outcome.answer += text
    usage = chunk.get("usage")
    if usage:
        outcome.prompt_tokens = usage["prompt_tokens"]
        outcome.answer_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        outcome.cached_tokens = details.get("cached_tokens")
