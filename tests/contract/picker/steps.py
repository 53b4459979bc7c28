"""The steps of a vector: what Envoy sends, and for which reply it then waits.

Owns the meaning of each step's name and argument. A step that Envoy would not do any more, because
the picker has answered the request or ended the stream, is left out and noted. Knows no
expectation (`matchers`).
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.envoy_view import echo_ended, has_replied
from tests.contract.picker.exchange import Exchange, Target, Wire
from tests.contract.picker.vectors import Mode

NOWHERE: Final = "192.0.2.1:9"
"""An endpoint of no pod: an address for documentation (RFC 5737)."""
UNKNOWN_FIELDS: Final = b"\xc2\x3e\x03abc"
"""Field 1000 with three bytes: no message of ext_proc has it."""
_PATH: Final = "/v1/completions"
_MODES: Final = {
    Mode.BUFFERED: pb.ProcessingMode.BUFFERED,
    Mode.DUPLEX: pb.ProcessingMode.FULL_DUPLEX_STREAMED,
    Mode.ANY: pb.ProcessingMode.BUFFERED,
}


@dataclass(slots=True)
class Playing:
    """Envoy's side of one stream while a vector is run."""

    wire: Wire
    target: Target
    mode: Mode
    number: int = 0
    """Of several streams of a vector: makes their prompts and ids differ."""
    exchange: Exchange = field(init=False)

    def __post_init__(self) -> None:
        self.exchange = self.wire.exchange

    def filled_in(self, value: Any) -> Any:
        """`value` with what is known of the target in place of `$model` and the like."""
        if isinstance(value, Mapping):
            return {key: self.filled_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.filled_in(item) for item in value]
        if isinstance(value, str) and value.startswith("$"):
            return self._known()[value]
        return value

    def _known(self) -> Mapping[str, Any]:
        pods = self.target.pods
        return {
            "$model": self.target.model,
            "$pods": list(pods),
            "$pods_text": ",".join(pods),
            "$last_pod": pods[-1] if pods else "",
            "$nowhere": NOWHERE,
        }


async def play(playing: Playing, name: str, argument: Any) -> None:
    """Do one step. Raises KeyError where the step or a part of its argument is unknown."""
    step = STEPS[name]
    if playing.exchange.is_over and name not in ("cancel", "half_close"):
        playing.exchange.unsent.append(name)
        return
    await step(playing, playing.filled_in(argument or {}))


async def _headers(playing: Playing, given: Mapping[str, Any]) -> None:
    exchange, wire = playing.exchange, playing.wire
    head = _request_head(playing, given)
    exchange.request_head = head
    exchange.request_ended = head.end_of_stream
    message = pb.ProcessingRequest(request_headers=head)
    _tell_mode(message, playing, given)
    _tell_metadata(exchange, given)
    await wire.send(message, UNKNOWN_FIELDS if given.get("unknown_fields") else b"")
    if head.end_of_stream or not exchange.duplex:
        await wire.wait(
            "the reply to the request's headers",
            lambda: has_replied(exchange, "request_headers"),
        )


def _request_head(playing: Playing, given: Mapping[str, Any]) -> pb.HttpHeaders:
    headers = {
        ":method": given.get("method", "POST"),
        ":path": given.get("path", _PATH),
        ":scheme": "http",
        ":authority": "contract.example",
        "content-type": "application/json",
        "x-request-id": f"contract-{playing.number}",
    }
    headers |= given.get("set", {})
    for name in given.get("without", []):
        headers.pop(name)
    head = pb.HttpHeaders(end_of_stream=given.get("end", False))
    for name, value in headers.items():
        header = head.headers.headers.add(key=name)
        where = given.get("in", "raw_value")
        if where in ("raw_value", "both"):
            header.raw_value = str(value).encode()
        if where == "value":
            header.value = str(value)
        if where == "both":
            header.value = given["other"].get(name, "not/this")
    return head


def _tell_mode(message: pb.ProcessingRequest, playing: Playing, given: Mapping[str, Any]) -> None:
    """`mode: none` leaves `protocol_config` out, as Envoys before 1.34 do."""
    named = given.get("mode")
    if named == "none":
        return
    modes = pb.ProcessingMode.BodySendMode
    config = message.protocol_config
    config.request_body_mode = modes.Value(named) if named else _MODES[playing.mode]
    if playing.exchange.duplex:
        config.response_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED


def _tell_metadata(exchange: Exchange, given: Mapping[str, Any]) -> None:
    for namespace, values in given.get("metadata", {}).items():
        held = Struct()
        held.update(values)
        exchange.metadata.filter_metadata[namespace].CopyFrom(held)
    if "subset" in given:
        hint = exchange.metadata.filter_metadata["envoy.lb.subset_hint"]
        hint.update({"x-gateway-destination-endpoint-subset": given["subset"]})


async def _body(playing: Playing, given: Mapping[str, Any]) -> None:
    exchange, wire = playing.exchange, playing.wire
    body = _bytes(playing, given)
    exchange.request_body += body
    ends = given.get("end", True)
    # In BUFFERED Envoy keeps the body: one message, whatever the client's pieces were.
    size = (exchange.duplex and given.get("chunk_bytes")) or len(body) or 1
    pieces = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    if given.get("empty_last"):
        pieces.append(b"")
    for number, piece in enumerate(pieces, start=1):
        if exchange.is_over:
            exchange.unsent.append("the rest of the body")
            return
        last = number == len(pieces)
        message = pb.ProcessingRequest()
        message.request_body.body = piece
        message.request_body.end_of_stream = ends and last
        await wire.send(message, UNKNOWN_FIELDS if given.get("unknown_fields") else b"")
    exchange.request_ended = ends
    if not exchange.duplex:
        await wire.wait(
            "the reply to the request's body", lambda: has_replied(exchange, "request_body")
        )
    elif ends:
        await _until_echoed(playing)


async def _until_echoed(playing: Playing) -> None:
    exchange = playing.exchange
    await playing.wire.wait(
        "the reply to the request's headers", lambda: has_replied(exchange, "request_headers")
    )
    await playing.wire.wait(
        "the end of the request's body",
        lambda: echo_ended(exchange) or has_replied(exchange, "request_trailers"),
    )


def _bytes(playing: Playing, given: Mapping[str, Any]) -> bytes:
    if "text" in given:
        return str(given["text"]).encode()
    if "json" in given:
        return json.dumps(given["json"]).encode()
    prompt = f"{given['prompt']} {playing.number}"
    fields = {"model": playing.target.model, "prompt": prompt, "max_tokens": 1}
    body = json.dumps(fields).encode()
    filler = given.get("bytes", 0) - len(body)
    if filler > 0:
        # No two pieces alike, so that a piece that is lost or twice there is seen.
        words = "".join(f" w{number}" for number in range(filler // 3))[:filler]
        name = given.get("padded", "prompt")
        body = json.dumps(fields | {name: fields.get(name, "") + words}).encode()
    return body


async def _end_again(playing: Playing, given: Mapping[str, Any]) -> None:
    """Envoy may say the end of a body twice; no reply is owed to the second."""
    for _ in range(given.get("times", 1)):
        message = pb.ProcessingRequest()
        message.request_body.end_of_stream = True
        await playing.wire.send(message)


async def _trailers(playing: Playing, given: Mapping[str, Any]) -> None:
    exchange = playing.exchange
    message = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
    for name, value in given.get("set", {}).items():
        message.request_trailers.trailers.headers.add(key=name, raw_value=str(value).encode())
    exchange.request_ended = exchange.has_trailers = True
    await playing.wire.send(message)
    await playing.wire.wait(
        "the reply to the request's trailers", lambda: has_replied(exchange, "request_trailers")
    )


async def _response_headers(playing: Playing, given: Mapping[str, Any]) -> None:
    exchange = playing.exchange
    message = pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(end_of_stream=given.get("end", False))
    )
    headers = {":status": given.get("status", 200), "content-type": "application/json"}
    for name, value in headers.items():
        message.response_headers.headers.headers.add(key=name, raw_value=str(value).encode())
    _tell_metadata(exchange, given)
    await playing.wire.send(message)
    await playing.wire.wait(
        "the reply to the response's headers", lambda: has_replied(exchange, "response_headers")
    )


async def _response_body(playing: Playing, given: Mapping[str, Any]) -> None:
    exchange = playing.exchange
    size = given.get("bytes", 0)
    body = (b'{"choices": []} ' * (size // 16 + 1))[:size]
    ends = given.get("end", True)
    before = sum(r.WhichOneof("response") == "response_body" for r in exchange.got)
    message = pb.ProcessingRequest()
    message.response_body.body, message.response_body.end_of_stream = body, ends
    exchange.answer += body
    await playing.wire.send(message)
    if exchange.duplex and ends:
        await playing.wire.wait(
            "the end of the response's body", lambda: echo_ended(exchange, "response_body")
        )
    elif not exchange.duplex:
        await playing.wire.wait(
            "the reply to the response's body",
            lambda: has_replied(exchange, "response_body", before + 1),
        )


async def _response_trailers(playing: Playing, _given: Mapping[str, Any]) -> None:
    exchange = playing.exchange
    await playing.wire.send(pb.ProcessingRequest(response_trailers=pb.HttpTrailers()))
    await playing.wire.wait(
        "the reply to the response's trailers", lambda: has_replied(exchange, "response_trailers")
    )


async def _half_close(playing: Playing, _given: Mapping[str, Any]) -> None:
    await playing.wire.finish()


async def _cancel(playing: Playing, _given: Mapping[str, Any]) -> None:
    playing.exchange.log.append(("note", "the client left: Envoy reset the stream"))
    playing.wire.cancel()


async def _broken_message(playing: Playing, _given: Mapping[str, Any]) -> None:
    """Bytes that are no message: the picker must give the stream up by itself."""
    exchange = playing.exchange
    await playing.wire.send_bytes(b"\xff\xff\xff\xff")
    await playing.wire.wait("the end of the stream", lambda: exchange.end is not None)


async def _empty_message(playing: Playing, _given: Mapping[str, Any]) -> None:
    """A kind of message that no reader knows yet: no reply is owed."""
    await playing.wire.send(pb.ProcessingRequest(), UNKNOWN_FIELDS)


STEPS: Final[Mapping[str, Callable[[Playing, Any], Awaitable[None]]]] = {
    "headers": _headers,
    "body": _body,
    "end_again": _end_again,
    "trailers": _trailers,
    "response_headers": _response_headers,
    "response_body": _response_body,
    "response_trailers": _response_trailers,
    "half_close": _half_close,
    "cancel": _cancel,
    "broken_message": _broken_message,
    "empty_message": _empty_message,
}
"""Beside these `health`, which opens no stream (`runner`)."""
