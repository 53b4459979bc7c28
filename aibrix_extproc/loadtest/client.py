"""One request over HTTP, answered as a stream, and what was seen of it.

Owns the reading of an answer and its times. Knows neither the workload nor other requests.
A request that fails is a result with `error` set, never an exception.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from aibrix_extproc.loadtest.sse import EventStream

SILENCE_LIMIT_S: Final = 120.0
"""Between two pieces of an answer; above it the request counts as failed."""
CHATS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
POD_HEADERS: Final = ("target-pod", "x-fake-pod")
"""Which pod answered: AIBRIX_EXTPROC_DEBUG_HEADERS adds the first; a fake engine says the other."""
MATCHED_HEADER: Final = "x-aibrix-matched-tokens"


@dataclass(slots=True)
class Outcome:
    """One request. Times in seconds from `sent_s`; tokens as the engine's `usage` says."""

    error: str | None = None
    """A short reason, the same for the same trouble; None: answered in full."""
    sent_s: float = 0.0
    """By `time.perf_counter`."""
    ttft_s: float | None = None
    """To the first piece of text."""
    text_s: list[float] = field(default_factory=list)
    """To each piece of text, the first included. A piece may be of several tokens."""
    duration_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens that the engine says it reused; None: it does not say."""
    answer_tokens: int = 0
    answer: str = ""
    pod: str | None = None
    """By the answer's headers; None: they do not tell."""
    matched_tokens: int | None = None
    """Prompt tokens that the processor expected to be reused; None: no header tells."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct):
    code: int | str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | None = None


_DECODER: Final = msgspec.json.Decoder(_Chunk)


class ChatClient:
    """Sends requests to one gateway. `url` is its root, without `/v1`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        headers: Mapping[str, str] | None = None,
        silence_limit_s: float = SILENCE_LIMIT_S,
    ) -> None:
        self._silence_limit_s = silence_limit_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_read=silence_limit_s)
        self._session = session
        self._url = url.rstrip("/")
        self._headers = dict(headers or {})
        self._sent_headers = self._headers | {"content-type": "application/json"}

    async def first_model(self) -> str:
        """The first name that `/v1/models` lists. Raises aiohttp.ClientError, or ValueError."""
        async with self._session.get(f"{self._url}/v1/models", headers=self._headers) as reply:
            reply.raise_for_status()
            listing = await reply.json(content_type=None)
        try:
            return str(listing["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ValueError("/v1/models lists no model") from None

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], answer_tokens: int
    ) -> Outcome:
        """Send one chat and read its answer to the end."""
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return await self.send(msgspec.json.encode(body))

    async def send(
        self, body: bytes, path: str = CHATS, headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """Send a body that asks for a stream, and read its answer to the end."""
        outcome = Outcome(sent_s=time.perf_counter())
        try:
            await self._read(body, path, headers, outcome)
        except TimeoutError:
            outcome.error = f"silent for {self._silence_limit_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            outcome.error = type(error).__name__
        except (msgspec.DecodeError, msgspec.ValidationError):
            outcome.error = "the stream is not OpenAI's"
        if not outcome.duration_s:
            outcome.duration_s = time.perf_counter() - outcome.sent_s
        return outcome

    async def _read(
        self, body: bytes, path: str, headers: Mapping[str, str] | None, outcome: Outcome
    ) -> None:
        async with self._session.post(
            self._url + path,
            data=body,
            headers={**self._sent_headers, **headers} if headers else self._sent_headers,
            timeout=self._timeout,
        ) as reply:
            _read_headers(reply.headers, outcome)
            if reply.status != 200:
                outcome.error = f"HTTP {reply.status}"
                return
            await _read_stream(reply.content, outcome)


async def _read_stream(content: aiohttp.StreamReader, outcome: Outcome) -> None:
    """To the last byte, beyond the stream's own end: so that the connection can be used again."""
    events = EventStream()
    async for received in content.iter_any():
        at_s = time.perf_counter() - outcome.sent_s
        for data in events.feed(received):
            if data == b"[DONE]":
                outcome.duration_s = at_s
            elif not outcome.duration_s:
                _read_chunk(_DECODER.decode(data), outcome, at_s)
            if outcome.error:
                return
    if not outcome.duration_s:
        outcome.error = "the stream ended early"


def _read_headers(headers: Mapping[str, str], outcome: Outcome) -> None:
    for name in POD_HEADERS:
        if name in headers:
            outcome.pod = headers[name]
            break
    matched = headers.get(MATCHED_HEADER, "")
    outcome.matched_tokens = int(matched) if matched.isdigit() else None


def _read_chunk(chunk: _Chunk, outcome: Outcome, at_s: float) -> None:
    if chunk.error is not None:
        outcome.error = f"error in the stream ({chunk.error.code})"
        return
    if chunk.choices is None:
        raise msgspec.ValidationError("no choices")
    for choice in chunk.choices:
        text = _text_of(choice, outcome)
        if text:
            if outcome.ttft_s is None:
                outcome.ttft_s = at_s
            outcome.text_s.append(at_s)
    if chunk.usage is not None:
        outcome.prompt_tokens = chunk.usage.prompt_tokens
        outcome.answer_tokens = chunk.usage.completion_tokens
        details = chunk.usage.prompt_tokens_details
        outcome.cached_tokens = details.cached_tokens if details else None


def _text_of(choice: _Choice, outcome: Outcome) -> str:
    """What counts as a piece of text; what was thought goes into no next turn."""
    if choice.delta is None:
        if choice.text is None:
            raise msgspec.ValidationError("neither delta nor text")
        outcome.answer += choice.text
        return choice.text
    delta = choice.delta
    outcome.answer += delta.content or ""
    return delta.content or delta.reasoning_content or delta.reasoning or ""
