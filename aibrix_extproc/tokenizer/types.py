"""What the tokenizer room hands out: tokens, or the reason why there are none."""

from array import array
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aibrix_extproc.errors import ExtprocError
from aibrix_extproc.tokenizer.buffers import TokenBuffer

WITHOUT_A_CALL: Final = ("cache", "body")
"""Sources of tokens that were there at once."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token ids of one prompt, as the engine will see them."""

    ids: "array[int]"
    """32-bit unsigned ('I'). Shared with the cache: never change it."""
    source: str
    """Where they come from: `cache`, `shared` (an equal prompt's call), `tokenize`, `render` or
    `body` (the client sent ids)."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The tokens that a prompt is known to begin with, enough of them to decide by."""

    ids: TokenBuffer
    estimated_tokens: int
    """Length of the whole prompt, from its bytes."""
    answer_tokens: int = 0
    """Of these, those that follow the known ones and are an engine's answer to them: who holds
    all that is known may hold these, and nobody else."""


class Reason(StrEnum):
    """Why a call failed, or why a prompt has no tokens: labels of a metric, a closed list."""

    DEADLINE = "deadline"
    """The caller's time was over. The call may go on and fill the cache."""
    TIMEOUT = "timeout"
    """An endpoint did not answer, or not connect, in time."""
    STALLED = "stalled"
    """Counted only: an endpoint takes calls and answers none. It is left alone from then on, and
    another is asked beside it."""
    REFUSED = "refused"
    """No connection to an endpoint."""
    DISCONNECTED = "disconnected"
    """An endpoint closed the connection before its reply was complete."""
    STATUS = "status"
    """An HTTP status that says nothing about the body: 5xx, 401, 404 without a model."""
    GARBAGE = "garbage"
    """A reply that is not what `/tokenize` returns."""
    TOO_LARGE = "too_large"
    """A reply above its limit."""
    REJECTED = "rejected"
    """400, 413 or 422: the body cannot be tokenized, by nobody."""
    MODEL_UNKNOWN = "model_unknown"
    """No endpoint knows the model."""
    BREAKER_OPEN = "breaker_open"
    """Every endpoint failed so often that it is left alone for a while."""
    NO_ENDPOINT = "no_endpoint"
    """No endpoint is set, and no pod of the model is ready."""
    TOO_MANY = "too_many"
    """Too many calls, or too many bytes of bodies, are under way."""
    CLOSED = "closed"
    """This server is stopping."""
    NO_RENDER = "no_render"
    """Counted only: an endpoint does not offer `/render`; `/tokenize` is asked instead."""
    RENDER_FAILED = "render_failed"
    """Counted only: `/render` gave no ids for one body; `/tokenize` is asked instead."""


REASONS: Final = tuple(Reason)


class TokenizerUnavailable(ExtprocError):
    """There are no tokens now; `reason` says why. The request is routed by load."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
