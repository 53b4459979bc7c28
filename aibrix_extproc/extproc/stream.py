"""The logic of one stream, which is one HTTP request: messages in, effects out.

Owns which reply is owed when, in both body modes, and what may be said after what; those to the
answer come from `answer`. Knows no gRPC, no clock and no metric; it holds protobuf messages. Rules
and numbers are those measured with a real Envoy 1.40.

BUFFERED: the headers are answered at once, the decision is the reply to the body. Duplex
(FULL_DUPLEX_STREAMED): nothing is answered until the body has ended and the decision is made;
then the reply to the headers, then the same bytes back in chunks. In duplex a stream that ends
well before the echo is complete makes Envoy forward an empty body, so `may_end` says when an
end is safe.
"""

import uuid
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from aibrix_extproc.errors import BodyTooLarge, RequestError
from aibrix_extproc.extproc import messages, replies
from aibrix_extproc.extproc.answer import Answer
from aibrix_extproc.extproc.decides import Answered, Outcome, Passed, Picked, RouteRequest
from aibrix_extproc.extproc.effects import (
    Abort,
    Decide,
    Effect,
    Release,
    Reply,
    Settled,
)
from aibrix_extproc.extproc.inflight import HeldBody, InflightBytes
from aibrix_extproc.extproc.messages import RequestHead
from aibrix_extproc.extproc.modes import Want, assumed_modes, body_in_pieces, modes_of, want
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings

LINGER_S: Final = 0.2
"""A duplex stream open for longer than this after the last reply waits for the answer's end: one
that does not ends within a round trip (measured: 1 to 3 ms)."""


class _Phase(Enum):
    FIRST = auto()
    """Nothing has come yet."""
    COLLECTING = auto()
    """The body is awaited, or is coming."""
    DECIDING = auto()
    PASSING = auto()
    """The outcome is sent: every message is answered as it comes."""
    ENDED = auto()
    """Answered by this server, or over: nothing more is said."""


def _new_id() -> str:
    return str(uuid.uuid4())


class Stream:
    """One stream. Every method returns the effects to carry out, in order."""

    def __init__(
        self,
        settings: Settings,
        inflight: InflightBytes,
        *,
        refusal: RequestError | None = None,
        picks: messages.Picks | None = None,
        new_id: Callable[[], str] = _new_id,
    ) -> None:
        """`refusal`: answer the request with this error, whatever it is (too many streams).

        `picks` is shared by all streams.
        """
        self._settings = settings
        self._held = HeldBody(inflight)
        self._refusal = refusal
        self._picks = picks or messages.Picks()
        self._new_id = new_id
        self._phase = _Phase.FIRST
        self._modes = assumed_modes(settings.default_body_mode)
        self._head: RequestHead | None = None
        self._request_id: str | None = None
        self._subset: frozenset[str] | None = None
        self._headers_replied = False
        self._request_ended = False
        self._trailers_owed = False
        self._ticket: object | None = None
        self._answer = Answer()
        self._client_headers: dict[str, str] = {}
        self._settled = False

    # -- inputs -------------------------------------------------------------------------------

    def receive(self, message: pb.ProcessingRequest) -> list[Effect]:
        """A message of Envoy's. One without a known content is skipped."""
        kind = message.WhichOneof("request")
        if kind is None or self._phase is _Phase.ENDED:
            return []
        effects: list[Effect] = []
        if self._phase is _Phase.FIRST:
            self._modes = modes_of(message, self._settings.default_body_mode)
            if kind != "request_headers":
                # request_header_mode SKIP: the pod is picked already, and the path is unknown.
                self._phase = _Phase.PASSING
                self._headers_replied = True
                effects += self._settle("passed", "no_headers")
        if self._subset is None:
            self._subset = messages.read_subset(message)
        return effects + _HANDLERS[kind](self, message)

    def decided(self, outcome: Outcome) -> list[Effect]:
        """The outcome of the last `Decide`."""
        if self._phase is not _Phase.DECIDING:
            return [Release(outcome.ticket)] if isinstance(outcome, Picked) else []
        match outcome:
            case Passed(reason):
                return self._pass(reason)
            case Answered():
                settled = self._settle("answered")
                return [*settled, *self._end_with(replies.answer(outcome, self._request_id))]
            case Picked(shadow=True, ticket=ticket):
                self._ticket = ticket
                self._answer.expect(outcome)
                return self._pass("shadow")
            case Picked():
                return self._pick(outcome)

    def refused(self, error: RequestError) -> list[Effect]:
        """The decision is an error for the client."""
        if self._phase is not _Phase.DECIDING:
            return []
        return self._refuse(error)

    def failed(self, kind: str | None) -> list[Effect]:
        """This class itself broke on a message of that kind: pass on where that is safe.

        In duplex it is not: what was echoed is not known, so the stream ends with an error.
        """
        settled = self._settle("passed", "internal_error")
        self._held.let_go()
        if self._modes.duplex or kind not in _PLAIN:
            self._phase = _Phase.ENDED
            return [*settled, Abort("INTERNAL", "an internal error of aibrix_extproc")]
        self._phase = _Phase.PASSING
        self._headers_replied = True
        return [*settled, Reply(_PLAIN[kind])]

    def closed(self, quiet_s: float = 0.0) -> list[Effect]:
        """The stream is over, whoever ended it. No reply comes of this.

        `quiet_s`: seconds since this server last answered a message. In duplex Envoy ends a
        stream at once when it wants no more of it; one that stayed open was kept for the end of
        the answer (`response_trailer_mode: SEND`, which `protocol_config` does not tell). Where
        the answer may still be running, its reservation is left to expire.
        """
        echoed = self._phase is _Phase.PASSING and self._request_ended
        running = echoed and not self._modes.end_seen and quiet_s < LINGER_S
        self._phase = _Phase.ENDED
        self._held.let_go()
        observed = self._answer.over(complete=False)
        return [*self._settle("left"), *observed, *([] if running else self._release())]

    @property
    def may_end(self) -> bool:
        """Whether an OK end is harmless now: the outcome is sent, and all that is owed back."""
        if self._phase is _Phase.ENDED:
            return True
        if self._phase is not _Phase.PASSING:
            return False
        if self._answer.owes(self._modes):
            return False
        return self._request_ended or not self._modes.duplex

    # -- the request --------------------------------------------------------------------------

    def _on_request_headers(self, message: pb.ProcessingRequest) -> list[Effect]:
        if self._phase is not _Phase.FIRST:
            return [Reply(messages.STRIP_REQUEST_HEADERS)]
        head = self._head = messages.read_head(message.request_headers)
        self._request_id = head.request_id or self._new_id()
        self._client_headers[messages.RESPONSE_ID] = self._request_id
        self._request_ended = head.end_of_stream
        if self._refusal is not None:
            return self._refuse(self._refusal)
        wanted = want(head)
        if wanted is Want.DECISION or self._modes.buffered:
            size_bytes = head.content_length or 0
            if size_bytes > self._settings.max_body_bytes and not head.end_of_stream:
                return self._refuse(BodyTooLarge(self._settings.max_body_bytes))
        if wanted is Want.NOTHING:
            return self._pass("untouched")
        if head.end_of_stream:
            return self._decide(b"")
        if (unsupported := self._modes.unsupported()) is not None:
            return self._refuse(unsupported)
        self._phase = _Phase.COLLECTING
        if self._modes.duplex:
            return []
        self._headers_replied = True
        return [Reply(messages.STRIP_REQUEST_HEADERS)]

    def _on_request_body(self, message: pb.ProcessingRequest) -> list[Effect]:
        body = message.request_body
        if self._modes.duplex:
            return self._on_chunk(body.body, body.end_of_stream)
        return self._on_kept_body(body.body, body.end_of_stream)

    def _on_kept_body(self, body: bytes, end_of_stream: bool) -> list[Effect]:
        """A body that Envoy keeps. With trailers to follow it comes without its end."""
        if self._phase is _Phase.DECIDING:
            return []
        if self._modes.buffered and len(body) > self._settings.max_body_bytes:
            return self._refuse(BodyTooLarge(self._settings.max_body_bytes))
        if self._phase is not _Phase.COLLECTING:
            self._request_ended = self._request_ended or end_of_stream
            return [Reply(messages.STRIP_REQUEST_BODY)]
        if self._modes.assumed and not end_of_stream:
            return self._refuse(body_in_pieces())
        self._request_ended = True
        if not self._held.add(body):
            return self._pass("inflight_bytes")
        return self._decide(body)

    def _on_chunk(self, chunk: bytes, end_of_stream: bool) -> list[Effect]:
        """A piece of a body that is owed back. Envoy may say the end twice."""
        if self._request_ended:
            return []
        self._request_ended = end_of_stream
        if self._phase is _Phase.PASSING:
            return _all(messages.echo_request_body(chunk, end_of_stream))
        if self._held.size_bytes + len(chunk) > self._settings.max_body_bytes:
            return self._refuse(BodyTooLarge(self._settings.max_body_bytes))
        if not self._held.add(chunk):
            return self._pass("inflight_bytes")
        return self._decide(self._held.joined()) if end_of_stream else []

    def _on_request_trailers(self, _message: pb.ProcessingRequest) -> list[Effect]:
        if self._modes.duplex and self._request_ended:
            return []
        self._request_ended = True
        if self._phase is _Phase.DECIDING:
            self._trailers_owed = True
            return []
        if self._phase is _Phase.COLLECTING:
            self._trailers_owed = True
            if self._modes.duplex:
                return self._decide(self._held.joined())
            # Trailers right after the headers: there is no body, and the headers are answered.
            self._phase = _Phase.PASSING
            return [*self._settle("passed", "no_body"), Reply(messages.PASS_REQUEST_TRAILERS)]
        return [Reply(messages.PASS_REQUEST_TRAILERS)]

    # -- the answer ---------------------------------------------------------------------------

    def _on_response_headers(self, message: pb.ProcessingRequest) -> list[Effect]:
        if self._phase is not _Phase.PASSING:
            # Envoy answers by itself (its own limit or time-out): no decision is wanted now.
            self._phase = _Phase.PASSING
            self._request_ended = True
            self._held.let_go()
        return self._released(self._answer.headers(message, self._modes, self._client_headers))

    def _on_response_body(self, message: pb.ProcessingRequest) -> list[Effect]:
        return self._released(self._answer.body(message, self._modes))

    def _on_response_trailers(self, _message: pb.ProcessingRequest) -> list[Effect]:
        return self._released(self._answer.trailers())

    def _released(self, effects: list[Effect]) -> list[Effect]:
        """With the end of the answer its load is gone."""
        return effects + self._release() if self._answer.ended else effects

    # -- outcomes -----------------------------------------------------------------------------

    def _decide(self, body: bytes) -> list[Effect]:
        assert self._head is not None  # noqa: S101  (a body is only collected after a head)
        assert self._request_id is not None  # noqa: S101
        self._phase = _Phase.DECIDING
        trusted = self._settings.trust_client_headers
        return [
            Decide(
                RouteRequest(
                    method=self._head.method,
                    path=self._head.path,
                    headers=self._head.preferences if trusted else {},
                    body=body,
                    request_id=self._request_id,
                    subset=self._subset,
                    end_seen=self._modes.end_seen,
                    traceparent=self._head.traceparent,
                )
            )
        ]

    def _pick(self, picked: Picked) -> list[Effect]:
        self._ticket = picked.ticket
        self._answer.expect(picked)
        endpoints = ",".join(messages.destinations(picked, self._settings.alternatives))
        if self._settings.debug_headers:
            self._client_headers |= messages.debug_headers(picked)
        reply = self._picks.reply(
            picked, endpoints, self._request_id or "", to_body=self._headers_replied
        )
        return [*self._settle("picked"), *self._go_on(reply)]

    def _pass(self, reason: str) -> list[Effect]:
        owed = (
            messages.STRIP_REQUEST_BODY if self._headers_replied else messages.STRIP_REQUEST_HEADERS
        )
        return [*self._settle("passed", reason), *self._go_on(owed)]

    def _go_on(self, reply: pb.ProcessingResponse) -> list[Effect]:
        """The reply that is owed; in duplex then the bytes held, and the trailers."""
        effects: list[Effect] = [Reply(reply)]
        if self._modes.duplex and not self._without_body():
            ends = self._request_ended and not self._trailers_owed
            effects += _all(messages.echo_request_body(self._held.joined(), ends))
        if self._trailers_owed:
            effects.append(Reply(messages.PASS_REQUEST_TRAILERS))
        self._headers_replied = True
        self._phase = _Phase.PASSING
        self._held.let_go()
        return effects

    def _without_body(self) -> bool:
        return self._head is not None and self._head.end_of_stream

    def _refuse(self, error: RequestError) -> list[Effect]:
        settled = self._settle("refused", error=error)
        return [*settled, *self._end_with(replies.refusal(error, self._request_id))]

    def _end_with(self, response: pb.ProcessingResponse) -> list[Effect]:
        self._phase = _Phase.ENDED
        self._held.let_go()
        return [Reply(response)]

    # -- small parts --------------------------------------------------------------------------

    def _settle(
        self, outcome: str, reason: str = "", error: RequestError | None = None
    ) -> list[Effect]:
        if self._settled:
            return []
        self._settled = True
        return [Settled(outcome, reason, error)]

    def _release(self) -> list[Effect]:
        ticket, self._ticket = self._ticket, None
        return [] if ticket is None else [Release(ticket)]


def _all(responses: list[pb.ProcessingResponse]) -> list[Effect]:
    return [Reply(response) for response in responses]


_HANDLERS: dict[str, Callable[[Stream, pb.ProcessingRequest], list[Effect]]] = {
    "request_headers": Stream._on_request_headers,
    "request_body": Stream._on_request_body,
    "request_trailers": Stream._on_request_trailers,
    "response_headers": Stream._on_response_headers,
    "response_body": Stream._on_response_body,
    "response_trailers": Stream._on_response_trailers,
}

_PLAIN: dict[str, pb.ProcessingResponse] = {
    "request_headers": messages.STRIP_REQUEST_HEADERS,
    "request_body": messages.STRIP_REQUEST_BODY,
    "request_trailers": messages.PASS_REQUEST_TRAILERS,
    "response_headers": messages.reply_to_response_headers({}),
    "response_body": messages.PASS_RESPONSE_BODY,
    "response_trailers": messages.PASS_RESPONSE_TRAILERS,
}
