"""Token counts out of an answer, whole or streamed: bytes in, a usage or the reason for none out.

Pure. Owns how much of an answer is kept while it passes: of a JSON answer all, up to a limit; of
server-sent events the end alone, since an engine sends its usage in the last one (vLLM, where the
request sets `stream_options.include_usage`). Nothing of the text is read or kept afterwards.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""Of a JSON answer: some 200,000 tokens. A longer one is not compared."""
TAIL_BYTES: Final = 16 * 1024
"""Kept of server-sent events: a usage takes about 300 bytes."""


class NoUsage(StrEnum):
    """Why an answer says nothing of its tokens: labels of a metric."""

    NOT_SENT = "not_sent"
    """Envoy did not hand over the body."""
    UNFINISHED = "unfinished"
    """The answer was cut off, or the client left."""
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    """Neither JSON nor server-sent events: compressed, for example."""
    NO_USAGE = "no_usage"
    """An error of the engine, or a stream without `include_usage`."""
    NO_DETAILS = "no_details"
    """The engine runs without `--enable-prompt-tokens-details`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an engine counted for one request."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that it did not compute."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_answer_of: Final = msgspec.json.Decoder(_Answer).decode


class AnswerReader:
    """Takes one answer in pieces, as they pass."""

    __slots__ = ("_is_json", "_kept", "_overflowed", "_pieces")

    def __init__(self) -> None:
        self._kept = bytearray()
        self._is_json: bool | None = None
        self._overflowed = False
        self._pieces = 0

    def feed(self, piece: bytes) -> None:
        """The next bytes of the answer."""
        self._pieces += 1
        if not piece or self._overflowed:
            return
        self._kept += piece
        if self._is_json is None and (start := self._kept.lstrip()[:1]):
            self._is_json = start == b"{"
        if self._is_json is False:
            del self._kept[:-TAIL_BYTES]
        elif len(self._kept) > MAX_ANSWER_BYTES:
            self._overflowed = True
            self._kept.clear()

    def ended(self, *, complete: bool = True) -> Usage | NoUsage:
        """What the answer said. `complete`: its end was seen; a usage counts without it too."""
        if not self._pieces:
            return NoUsage.NOT_SENT
        if self._overflowed:
            return NoUsage.TOO_LARGE
        kept = bytes(self._kept)
        self._kept.clear()
        found = _of_json(kept) if self._is_json else _of_events(kept)
        return found if complete or isinstance(found, Usage) else NoUsage.UNFINISHED


def _of_json(body: bytes) -> Usage | NoUsage:
    try:
        answer = _answer_of(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return NoUsage.UNREADABLE
    return _usage(answer)


def _of_events(tail: bytes) -> Usage | NoUsage:
    """The usage of the last event that has one; the first line of a tail may be a torn one."""
    lines = tail.replace(b"\r\n", b"\n").split(b"\n")
    events = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    if not events:
        return NoUsage.UNREADABLE
    for event in reversed(events):
        if b'"usage"' not in event:
            continue
        found = _of_json(event)
        if found not in (NoUsage.UNREADABLE, NoUsage.NO_USAGE):
            return found
    return NoUsage.NO_USAGE


def _usage(answer: _Answer) -> Usage | NoUsage:
    usage = answer.usage
    if usage is None or usage.prompt_tokens <= 0:
        return NoUsage.NO_USAGE
    details = usage.prompt_tokens_details
    if details is None or details.cached_tokens is None:
        return NoUsage.NO_DETAILS
    return Usage(usage.prompt_tokens, details.cached_tokens)
