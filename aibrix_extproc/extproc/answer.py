"""One stream's answer: the replies to it, and what is learned of it while it passes: who served
it, how it began, what it counted.

Owns which answers' bodies are asked for and how: never held up, and never in duplex, where Envoy
1.40 ignores the wish. Knows nothing of the request (`stream`), nor what is made of all this.
"""

from collections.abc import Mapping
from typing import Final

from aibrix_extproc.agreement.usage import AnswerReader
from aibrix_extproc.extproc import messages
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.extproc.effects import Effect, Observed, PrefillDone, Reply
from aibrix_extproc.extproc.messages import header_text
from aibrix_extproc.extproc.modes import Modes
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb

UPSTREAM_ADDRESS: Final = "upstream.address"
"""Envoy's attribute for the host that serves, `ip:port`: the last one, where there were retries."""

_STREAMED: Final = pb.ProcessingMode(response_body_mode=pb.ProcessingMode.STREAMED)
"""Each piece is handed over as it comes and goes on with the reply; BUFFERED would hold a streamed
answer until its end."""


def served_by(message: pb.ProcessingRequest) -> str | None:
    """The host that serves, where Envoy was asked to say it (`response_attributes`)."""
    for attributes in message.attributes.values():
        if UPSTREAM_ADDRESS in attributes.fields:
            return attributes.fields[UPSTREAM_ADDRESS].string_value or None
    return None


def succeeded(message: pb.ProcessingRequest) -> bool:
    """Whether the answer has status 200."""
    for header in message.response_headers.headers.headers:  # Envoy's first one is the status
        if header.key == ":status":
            return header_text(header) == "200"
    return False


class Answer:
    """One stream's answer. What takes a message returns the effects to carry out, in order."""

    __slots__ = ("_begun", "_is_sampled", "_reader", "_ticket", "ended")

    def __init__(self) -> None:
        self._ticket: object | None = None
        self._is_sampled = False
        self._reader: AnswerReader | None = None
        self._begun = False
        self.ended = False
        """Its end was seen."""

    def expect(self, picked: Picked) -> None:
        """The request goes to a pod."""
        self._ticket = picked.ticket
        self._is_sampled = picked.is_sampled

    def headers(
        self, message: pb.ProcessingRequest, modes: Modes, told: Mapping[str, str]
    ) -> list[Effect]:
        """The answer's headers. `told`: headers that the client is to get beside them."""
        self._begun = True
        reply = messages.reply_to_response_headers(told)
        effects = [*self._begins(message, modes, reply), Reply(reply)]
        return effects + self._if_ends(message.response_headers.end_of_stream)

    def body(self, message: pb.ProcessingRequest, modes: Modes) -> list[Effect]:
        """A piece of the body, which is owed back where `modes` says so."""
        body = message.response_body
        if self._reader is not None:
            self._reader.feed(body.body)
        if not modes.answer_duplex:
            return [Reply(messages.PASS_RESPONSE_BODY), *self._if_ends(body.end_of_stream)]
        if self.ended:
            return []
        echo = messages.echo_response_body(body.body, body.end_of_stream)
        return [*(Reply(response) for response in echo), *self._if_ends(body.end_of_stream)]

    def trailers(self) -> list[Effect]:
        """The answer's trailers, which are its end."""
        return [Reply(messages.PASS_RESPONSE_TRAILERS), *self._if_ends(True)]

    def owes(self, modes: Modes) -> bool:
        """Whether what Envoy has handed over of it is not all given back."""
        return modes.answer_duplex and self._begun and not self.ended

    def over(self, *, complete: bool) -> list[Effect]:
        """The answer is over; `complete`: its end was seen. Says what it counted, once."""
        reader, self._reader = self._reader, None
        if reader is None or self._ticket is None:
            return []
        return [Observed(self._ticket, reader.ended(complete=complete))]

    def _if_ends(self, ends: bool) -> list[Effect]:
        if not ends:
            return []
        self.ended = True
        return self.over(complete=True)

    def _begins(
        self, message: pb.ProcessingRequest, modes: Modes, reply: pb.ProcessingResponse
    ) -> list[Effect]:
        """The answer's headers, and the reply to them: it may ask for the body."""
        if self._ticket is None:
            return []
        ok = succeeded(message)
        if self._is_sampled and ok and not message.response_headers.end_of_stream:
            self._reader = AnswerReader()
            if modes.may_ask_for_answer:
                reply.mode_override.CopyFrom(_STREAMED)
        return [PrefillDone(self._ticket, served_by(message), ok)]
