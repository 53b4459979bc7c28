"""Messages in words, for the failure of a vector."""

import json
from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.envoy_view import common_of, mutations, removed_by
from tests.contract.picker.exchange import Exchange

_SHOWN_BYTES = 80


def told(exchange: Exchange) -> str:
    """The whole exchange, a line for each message."""
    lines = []
    for kind, what in exchange.log:
        if kind == "sent":
            lines.append(f"sent  {sent(what)}")
        elif kind == "got":
            lines.append(f"got   {got(what)}")
        elif kind == "missing":
            lines.append(f"got   nothing more, while Envoy waits for {what}")
        else:
            lines.append(f"      ({what})")
    if exchange.end is not None:
        details = f": {exchange.end_details}" if exchange.end_details else ""
        lines.append(f"got   the end of the stream with status {exchange.end}{details}")
    if exchange.unsent:
        lines.append(f"      (not sent after that: {', '.join(exchange.unsent)})")
    return "\n".join(_folded(lines))


def sent(message: pb.ProcessingRequest) -> str:
    """A message of Envoy's."""
    kind = message.WhichOneof("request") or "nothing"
    parts = [kind.replace("_", " ")]
    if kind in ("request_headers", "response_headers"):
        headers = getattr(message, kind)
        parts += [_pairs(headers.headers), _end(headers.end_of_stream)]
    elif kind in ("request_body", "response_body"):
        body = getattr(message, kind)
        parts += [_bytes(body.body), _end(body.end_of_stream)]
    if message.HasField("protocol_config"):
        mode = message.protocol_config.request_body_mode
        parts.append(f"body mode {pb.ProcessingMode.BodySendMode.Name(mode)}")
    if message.HasField("metadata_context"):
        metadata = MessageToDict(message.metadata_context).get("filterMetadata", {})
        parts.append(f"metadata {json.dumps(metadata)}")
    return ", ".join(part for part in parts if part)


def got(reply: pb.ProcessingResponse) -> str:
    """A reply of the picker's."""
    kind = reply.WhichOneof("response")
    if kind is None:
        return "a reply without content"
    if kind == "immediate_response":
        answer = reply.immediate_response
        headers = _set(reply)
        return f"an answer of its own: status {answer.status.code}, {headers}{_bytes(answer.body)}"
    parts = [f"reply to {kind.replace('_', ' ')}:"]
    common = common_of(reply)
    if common is not None:
        if common.body_mutation.HasField("streamed_response"):
            chunk = common.body_mutation.streamed_response
            parts += [_bytes(chunk.body) + ",", _end(chunk.end_of_stream) or "more to come"]
        elif common.body_mutation.WhichOneof("mutation"):
            parts.append("another body,")
        if common.clear_route_cache:
            parts.append("clears the route cache,")
        if common.status:
            parts.append("CONTINUE_AND_REPLACE,")
    parts.append(_set(reply))
    if removed := removed_by(mutations(reply)):
        parts.append(f"removes {', '.join(sorted(removed))};")
    if reply.HasField("dynamic_metadata"):
        parts.append(f"metadata {json.dumps(MessageToDict(reply.dynamic_metadata))}")
    return " ".join(part for part in parts if part).rstrip(",; ")


def _set(reply: pb.ProcessingResponse) -> str:
    texts = [_pair(option.header) for option in mutations(reply).set_headers]
    return f"sets {', '.join(texts)}; " if texts else ""


def _pairs(headers: pb.HeaderMap) -> str:
    return " ".join(_pair(header) for header in headers.headers)


def _pair(header: pb.HeaderValue) -> str:
    raw = header.raw_value.decode("utf-8", "replace")
    if header.value and raw:
        return f"{header.key}={raw!r} (raw_value; value is {header.value!r})"
    if header.value:
        return f"{header.key}={header.value!r} (in value, not raw_value)"
    return f"{header.key}={raw!r}"


def _end(is_end: bool) -> str:
    return "the end" if is_end else ""


def _bytes(body: bytes) -> str:
    shown = body[:_SHOWN_BYTES].decode("utf-8", "replace")
    dots = "…" if len(body) > _SHOWN_BYTES else ""
    return f"{len(body):,} bytes {shown!r}{dots}"


def _folded(lines: list[str]) -> Iterator[str]:
    """Of many lines of one kind in a row the first two and the last."""
    at = 0
    while at < len(lines):
        start = lines[at][:22]
        run = at
        while run < len(lines) and lines[run][:22] == start:
            run += 1
        if run - at > 4:
            yield from (*lines[at : at + 2], f"      … {run - at - 3} more …", lines[run - 1])
        else:
            yield from lines[at:run]
        at = run
