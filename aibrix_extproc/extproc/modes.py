"""How Envoy sends bodies on one stream, and which requests want a decision.

Owns the reading of `protocol_config` (Envoy 1.34 and later name their modes in the first
message) and the table of paths. Knows nothing of replies.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from aibrix_extproc.errors import BodyModeUnsupported
from aibrix_extproc.extproc.messages import RequestHead
from aibrix_extproc.extproc.openai import is_completion_path
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import BodyMode

_Mode = pb.ProcessingMode.BodySendMode
_NONE = pb.ProcessingMode.NONE
_BUFFERED = pb.ProcessingMode.BUFFERED
_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED


@dataclass(frozen=True, slots=True)
class Modes:
    """The body modes of one stream."""

    request: _Mode
    response: _Mode
    assumed: bool
    """True where Envoy did not name them: the setting did."""

    @property
    def duplex(self) -> bool:
        """The request's body is owed back, byte by byte."""
        return self.request == _DUPLEX

    @property
    def buffered(self) -> bool:
        return self.request == _BUFFERED

    @property
    def answer_duplex(self) -> bool:
        """The answer's body is owed back."""
        return self.response == _DUPLEX

    @property
    def may_ask_for_answer(self) -> bool:
        """Whether a wish for the answer's body is heard, and needed. In duplex Envoy 1.40 ignores
        it; where bodies come anyhow it would only change how."""
        return not self.duplex and self.response == _NONE

    @property
    def end_seen(self) -> bool:
        """Whether the end of the answer is sure to be seen.

        Outside duplex the stream lives as long as the answer. In duplex it ends with the
        request's body unless Envoy sends more; that it sends the answer's trailers is not said
        in `protocol_config`, so only the answer's body counts as a promise, and an assumed mode
        promises nothing.
        """
        return not self.duplex or (self.response != _NONE and not self.assumed)

    def unsupported(self) -> BodyModeUnsupported | None:
        """The error for a request whose body must be read and cannot be; None where it can."""
        if self.duplex or self.buffered:
            return None
        name = _Mode.Name(self.request) if self.request in _Mode.values() else str(self.request)
        return BodyModeUnsupported(
            f"Envoy's request_body_mode {name} does not let this server read whole bodies. "
            "Set processing_mode.request_body_mode to BUFFERED or FULL_DUPLEX_STREAMED."
        )


_ASSUMED: Final = {
    BodyMode.BUFFERED: Modes(_BUFFERED, _NONE, assumed=True),
    BodyMode.DUPLEX: Modes(_DUPLEX, _DUPLEX, assumed=True),
}


def modes_of(first: pb.ProcessingRequest, default: BodyMode) -> Modes:
    """From the first message of a stream; by the setting where Envoy names no mode."""
    if not first.HasField("protocol_config"):
        return _ASSUMED[default]
    config = first.protocol_config
    return _named(config.request_body_mode, config.response_body_mode)


@lru_cache(maxsize=64)
def _named(request: _Mode, response: _Mode) -> Modes:
    """An Envoy names the same two in all of its streams."""
    return Modes(request, response, assumed=False)


def assumed_modes(default: BodyMode) -> Modes:
    """What holds before the first message."""
    return _ASSUMED[default]


def body_in_pieces() -> BodyModeUnsupported:
    """The error for a piece of a body where a whole one was assumed."""
    return BodyModeUnsupported(
        "Envoy sends this body in pieces and does not name its mode. Set "
        "processing_mode.request_body_mode to BUFFERED, or, for FULL_DUPLEX_STREAMED with an "
        "Envoy before 1.34, AIBRIX_EXTPROC_DEFAULT_BODY_MODE=duplex."
    )


class Want(Enum):
    """What a request's head asks of this server."""

    DECISION = auto()
    NOTHING = auto()
    """It passes untouched."""


def want(head: RequestHead) -> Want:
    """Which requests are decided: the two completion paths, whatever content type they name;
    other paths under /v1/ with a JSON body (a missing content type may be JSON); and
    GET /v1/models, which is answered here."""
    path = head.path.partition("?")[0]
    if head.method == "GET":
        models = path == "/v1/models" and head.end_of_stream
        return Want.DECISION if models else Want.NOTHING
    if head.method != "POST":
        return Want.NOTHING
    if is_completion_path(head.path):
        return Want.DECISION
    json_body = not head.end_of_stream and _may_be_json(head.content_type)
    return Want.DECISION if path.startswith("/v1/") and json_body else Want.NOTHING


def _may_be_json(content_type: str) -> bool:
    return content_type in ("", "application/json") or content_type.endswith("+json")
