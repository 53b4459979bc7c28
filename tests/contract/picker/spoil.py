"""How one stream is spoilt: functions from a message or a reply to what goes on in its place.

Knows no gRPC, no vector and no fault by its name (`faults`).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from google.protobuf.unknown_fields import UnknownFieldSet

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.envoy_view import DESTINATION, common_of, metadata_of, mutations
from tests.contract.picker.steps import NOWHERE

Request, Reply = pb.ProcessingRequest, pb.ProcessingResponse


class EndStream(Exception):
    """The picker ends the stream with OK here."""


@dataclass(slots=True)
class Memory:
    """What the wrong server keeps over all streams."""

    open_streams: int = 0
    cancelled: int = 0
    first_body: bytes = b""


@dataclass(slots=True)
class Passing:
    """One stream that passes through."""

    memory: Memory
    is_duplex: bool = False
    is_broken: bool = False
    """Bytes came that are no message."""
    ends_seen: int = 0
    session: str = ""
    """What the client names in x-session-id."""
    kept: list[Reply] = field(default_factory=list)
    own: list[Reply] = field(default_factory=list)

    def saw(self, message: Request) -> None:
        """Learns the mode from the first message, and counts ends."""
        if message.WhichOneof("request") == "request_headers":
            mode = message.protocol_config.request_body_mode
            self.is_duplex = mode == pb.ProcessingMode.FULL_DUPLEX_STREAMED
            for header in message.request_headers.headers.headers:
                if header.key == "x-session-id":
                    self.session = header.raw_value.decode()
        self.ends_seen += message.request_body.end_of_stream

    def taken(self) -> list[Reply]:
        """Replies that the fault makes up by itself, once each."""
        own, self.own = self.own, []
        return own


def as_it_came(_passing: Passing, message: Request) -> list[Request]:
    return [message]


def as_it_is(_passing: Passing, reply: Reply) -> list[Reply]:
    return [reply]


def _kind(reply: Reply) -> str:
    return reply.WhichOneof("response") or ""


def _streamed(reply: Reply) -> pb.StreamedBodyResponse | None:
    common = common_of(reply)
    if common is None or not common.body_mutation.HasField("streamed_response"):
        return None
    return common.body_mutation.streamed_response


def _piece(body: bytes, end: bool) -> Reply:
    reply = Reply()
    streamed = reply.request_body.response.body_mutation.streamed_response
    streamed.body, streamed.end_of_stream = body, end
    return reply


# -- bodies -----------------------------------------------------------------------------------


def ok_after_a_piece(passing: Passing, reply: Reply) -> list[Reply]:
    if passing.kept:
        raise EndStream
    if _streamed(reply) is not None:
        passing.kept.append(reply)
    return [reply]


def _whole_body(
    passing: Passing, reply: Reply, change: Callable[[bytes], Iterator[Reply]]
) -> list[Reply]:
    """Keeps the pieces of the request's body until the last, then sends others."""
    piece = _streamed(reply)
    if piece is None or _kind(reply) != "request_body":
        return [reply]
    passing.kept.append(reply)
    if not piece.end_of_stream:
        return []
    pieces = [_streamed(one) for one in passing.kept]
    return list(change(b"".join(one.body for one in pieces if one is not None)))


def in_one_piece(passing: Passing, reply: Reply) -> list[Reply]:
    return _whole_body(passing, reply, lambda body: iter([_piece(body, True)]))


def rewritten(passing: Passing, reply: Reply) -> list[Reply]:
    def change(body: bytes) -> Iterator[Reply]:
        yield _piece(json.dumps(json.loads(body), separators=(",", ":")).encode(), True)

    return _whole_body(passing, reply, change)


def cut(passing: Passing, reply: Reply) -> list[Reply]:
    return _whole_body(passing, reply, lambda body: iter([_piece(body[:-1], True)]))


def emptied(passing: Passing, reply: Reply) -> list[Reply]:
    return _whole_body(passing, reply, lambda _body: iter([_piece(b"", True)]))


def end_on_each(passing: Passing, reply: Reply) -> list[Reply]:
    def change(body: bytes) -> Iterator[Reply]:
        yield _piece(body[:100], True)
        yield _piece(body[100:], True)

    return _whole_body(passing, reply, change)


def no_end(_passing: Passing, reply: Reply) -> list[Reply]:
    if (piece := _streamed(reply)) is not None:
        piece.end_of_stream = False
    return [reply]


def wrong_length(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "request_headers":
        _set(reply, "content-length", "7")
    return [reply]


def of_another_stream(passing: Passing, reply: Reply) -> list[Reply]:
    piece = _streamed(reply)
    if piece is not None and passing.memory.open_streams > 1:
        passing.memory.first_body = passing.memory.first_body or piece.body
        piece.body = passing.memory.first_body
    return [reply]


def body_first(passing: Passing, reply: Reply) -> list[Reply]:
    """The trailers' reply before the body's."""
    if _streamed(reply) is not None:
        passing.kept.append(reply)
        return []
    return [reply, *passing.kept] if _kind(reply) == "request_trailers" else [reply]


def end_answered_again(passing: Passing, message: Request) -> list[Request]:
    if passing.ends_seen > 1 and message.request_body.end_of_stream:
        passing.own.append(_piece(b"", True))
    return [message]


def twice(_passing: Passing, reply: Reply) -> list[Reply]:
    return [reply, reply] if _kind(reply) == "request_body" else [reply]


def replaced(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "request_body":
        reply.request_body.response.body_mutation.body = b"{}"
    return [reply]


def first_piece_alone(_passing: Passing, message: Request) -> list[Request]:
    """Takes the first piece for the whole body."""
    if message.request_body.body:
        message.request_body.end_of_stream = True
    return [message]


def no_large_body(passing: Passing, message: Request) -> list[Request]:
    """As a picker with gRPC's own limit would, for a whole body of 256 kB."""
    if len(message.request_body.body) > 256_000:
        passing.own.append(_refusal(413, b"too large"))
        return []
    return [message]


def _refusal(status: int, body: bytes) -> Reply:
    reply = Reply()
    reply.immediate_response.status.code = status  # type: ignore[assignment]
    reply.immediate_response.body = body
    return reply


# -- headers ----------------------------------------------------------------------------------


def _set(reply: Reply, name: str, value: str) -> None:
    mutations(reply).set_headers.add().header.MergeFrom(
        pb.HeaderValue(key=name, raw_value=value.encode())
    )


def by_value(_passing: Passing, reply: Reply) -> list[Reply]:
    for option in mutations(reply).set_headers:
        option.header.value = option.header.raw_value.decode()
        option.header.raw_value = b""
    return [reply]


def only_raw_read(_passing: Passing, message: Request) -> list[Request]:
    for header in message.request_headers.headers.headers:
        header.value = ""
    return [message]


def value_read_first(_passing: Passing, message: Request) -> list[Request]:
    for header in message.request_headers.headers.headers:
        header.raw_value = header.value.encode() or header.raw_value
    return [message]


def host_set(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) in ("request_headers", "request_body") and _streamed(reply) is None:
        _set(reply, "host", "pod.example")
    return [reply]


def known_fields_only(passing: Passing, message: Request) -> list[Request]:
    if len(UnknownFieldSet(message)):
        passing.own.append(_refusal(400, b"unknown field"))
        return []
    return [message]


def nothing_removed(_passing: Passing, reply: Reply) -> list[Reply]:
    del mutations(reply).remove_headers[:]
    return [reply]


def header_reply_plain(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "request_headers":
        reply.request_headers.response.ClearField("header_mutation")
    return [reply]


def no_mode_is_duplex(_passing: Passing, message: Request) -> list[Request]:
    head = message.WhichOneof("request") == "request_headers"
    if head and not message.HasField("protocol_config"):
        message.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
    return [message]


def streamed_taken(_passing: Passing, message: Request) -> list[Request]:
    if message.protocol_config.request_body_mode == pb.ProcessingMode.STREAMED:
        message.protocol_config.request_body_mode = pb.ProcessingMode.BUFFERED
    return [message]


# -- picks ------------------------------------------------------------------------------------


def _pick_changed(reply: Reply, header: Callable[[str], str], metadata: bool = True) -> list[Reply]:
    for option in mutations(reply).set_headers:
        if option.header.key == DESTINATION:
            value = header(option.header.raw_value.decode())
            option.header.raw_value = value.encode()
            if metadata:
                fields = reply.dynamic_metadata.fields["envoy.lb"].struct_value.fields
                fields[DESTINATION].string_value = value
    return [reply]


def stranger(_passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda _value: NOWHERE)


def session_obeyed(passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda value: passing.session or value)


def spaces(_passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda value: value.replace(",", ", "))


def name(_passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda _value: "pod-0.example")


def repeated(_passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda value: f"{value},{value}")


def other_metadata(_passing: Passing, reply: Reply) -> list[Reply]:
    return _pick_changed(reply, lambda value: value.split(",")[-1], metadata=False)


def no_metadata(_passing: Passing, reply: Reply) -> list[Reply]:
    reply.ClearField("dynamic_metadata")
    return [reply]


def no_header(_passing: Passing, reply: Reply) -> list[Reply]:
    if metadata_of(reply) is not None:
        mutations(reply).ClearField("set_headers")
    return [reply]


def subset_unread(_passing: Passing, message: Request) -> list[Request]:
    message.ClearField("metadata_context")
    return [message]


def pick_with_the_body(passing: Passing, reply: Reply) -> list[Reply]:
    """In duplex, where Envoy does not look at header mutations in replies to a body."""
    if metadata_of(reply) is not None:
        moved = pb.HeaderMutation()
        moved.CopyFrom(mutations(reply))
        passing.kept.append(Reply())
        passing.kept[0].request_headers.response.header_mutation.CopyFrom(moved)
        reply.request_headers.response.ClearField("header_mutation")
        reply.ClearField("dynamic_metadata")
    elif passing.kept and _streamed(reply) is not None:
        held = mutations(passing.kept[0])
        reply.request_body.response.header_mutation.CopyFrom(held)
    return [reply]


def route_cache(value: bool) -> Callable[[Passing, Reply], list[Reply]]:
    def change(_passing: Passing, reply: Reply) -> list[Reply]:
        common = common_of(reply)
        if common is not None and _streamed(reply) is None:
            common.clear_route_cache = value
        return [reply]

    return change


# -- answers ----------------------------------------------------------------------------------


def silent(kind: str) -> Callable[[Passing, Reply], list[Reply]]:
    return lambda _passing, reply: [] if _kind(reply) == kind else [reply]


def plain_text(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "immediate_response":
        reply.immediate_response.body = b"no"
    return [reply]


def no_content_type(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "immediate_response":
        reply.immediate_response.ClearField("headers")
    return [reply]


def always_500(_passing: Passing, reply: Reply) -> list[Reply]:
    if _kind(reply) == "immediate_response":
        reply.immediate_response.status.code = pb.StatusCode.InternalServerError
    return [reply]


def dead_after_a_cancel(passing: Passing, message: Request) -> list[Request]:
    if passing.memory.cancelled:
        passing.own.append(_refusal(503, b"gone"))
        return []
    return [message]
