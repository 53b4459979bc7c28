"""Envoy's messages: reading what came, building the plain replies.

Owns the shape of the protobuf messages, header names and the size of chunks. Knows neither when
a message is due (`stream`) nor errors (`replies`). The rules are those of a real Envoy 1.40:
headers come in `raw_value` (older ones and other clients: `value`); towards Envoy only
`raw_value` is set, because `value` alone gives an empty header.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec
from google.protobuf.struct_pb2 import Struct

from aibrix_extproc.errors import printable
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb

TARGET_POD: Final = "target-pod"
DESTINATION: Final = "x-gateway-destination-endpoint"
RANK: Final = "x-data-parallel-rank"
STRATEGY: Final = "routing-strategy"
FILTER: Final = "external-filter"
SESSION: Final = "x-session-id"
REQUEST_ID: Final = "x-request-id"
TRACEPARENT: Final = "traceparent"
RESPONSE_ID: Final = "request-id"
MATCHED_TOKENS: Final = "x-aibrix-matched-tokens"

DESTINATION_HEADERS: Final = (TARGET_POD, DESTINATION, RANK)
"""Where they come from a client they must never reach the router or a pod."""
PREFERENCE_HEADERS: Final = (STRATEGY, FILTER, SESSION)
"""A client's to send, where the operator trusts clients."""
METADATA_NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
SUBSET_KEY: Final = "x-gateway-destination-endpoint-subset"

CHUNK_BYTES: Final = 62_000
"""Largest `streamed_response`: Envoy's limit is 64 KiB for the whole message."""

REQUEST_HEADERS: Final = frozenset(
    (
        *(":method", ":path", "content-type", "content-length"),
        *(REQUEST_ID, TRACEPARENT),
        *PREFERENCE_HEADERS,
    )
)
"""All that is read of a request's headers. The shipped Envoy files send these and `:status`."""
_TRACEPARENT_VALUE: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""Of W3C Trace Context, version 00."""
_ID_LIMIT_BYTES: Final = 128
_PICKS_BUILT: Final = 2_048
"""Replies that are kept, some 1 kB each. Alternatives make many: with more, all are built anew."""
_LENGTH_DIGITS: Final = 20
"""Of a content-length. Python refuses to read an int of more than 4,300 digits."""


class RequestHead(msgspec.Struct, frozen=True):
    """What is read of a request's headers."""

    method: str
    path: str
    content_type: str
    """Lower case, without parameters; empty where there is none."""
    content_length: int | None
    request_id: str | None
    """None where there is none that may be echoed."""
    preferences: Mapping[str, str]
    end_of_stream: bool
    """True: the request has no body."""
    traceparent: str | None = None
    """None where there is none that is one."""


def read_head(message: pb.HttpHeaders) -> RequestHead:
    """The head of a request; of a repeated header the first counts."""
    seen: dict[str, str] = {}
    for header in message.headers.headers:
        name = header.key.lower()
        if name in REQUEST_HEADERS and name not in seen:
            seen[name] = header_text(header)
    return RequestHead(
        method=seen.get(":method", ""),
        path=seen.get(":path", ""),
        content_type=seen.get("content-type", "").partition(";")[0].strip().lower(),
        content_length=_length(seen.get("content-length", "")),
        request_id=_usable_id(seen.get(REQUEST_ID, "")),
        preferences={name: seen[name] for name in PREFERENCE_HEADERS if name in seen},
        end_of_stream=message.end_of_stream,
        traceparent=_usable_traceparent(seen.get(TRACEPARENT)),
    )


def header_text(header: pb.HeaderValue) -> str:
    """The value: `raw_value` where it is set, else `value`."""
    return header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value


def _length(text: str) -> int | None:
    """A content-length; of one too long for any body its first digits are as good."""
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text.lstrip("0")[:_LENGTH_DIGITS] or "0")


def _usable_id(text: str) -> str | None:
    return text if text and safe_value(text, _ID_LIMIT_BYTES) == text else None


def _usable_traceparent(text: str | None) -> str | None:
    return text if text is not None and _TRACEPARENT_VALUE.fullmatch(text) else None


def read_subset(message: pb.ProcessingRequest) -> frozenset[str] | None:
    """The subset hint, `ip:port` each, from a list or a comma-separated string; None without."""
    if not message.HasField("metadata_context"):
        return None
    namespaces = message.metadata_context.filter_metadata
    if SUBSET_NAMESPACE not in namespaces:
        return None
    fields = namespaces[SUBSET_NAMESPACE].fields
    if SUBSET_KEY not in fields:
        return None
    hint = fields[SUBSET_KEY]
    if hint.WhichOneof("kind") == "list_value":
        parts: Iterable[str] = (value.string_value for value in hint.list_value.values)
    else:
        parts = hint.string_value.split(",")
    return frozenset(stripped for part in parts if (stripped := part.strip()))


def mutation(
    set_headers: Mapping[str, str] | None = None, remove: Iterable[str] = ()
) -> pb.HeaderMutation:
    """Headers to set (they overwrite) and to remove. Values must be safe: see `safe_value`."""
    return pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(header=pb.HeaderValue(key=name, raw_value=value.encode()))
            for name, value in (set_headers or {}).items()
        ],
        remove_headers=remove,
    )


def safe_value(text: str, limit_bytes: int = 1024) -> str:
    """What may stand in a header: printable ASCII, so no line end, and bounded."""
    if len(text) <= limit_bytes and text.isascii() and text.isprintable():
        return text
    return printable(text, limit_bytes)


STRIPPED: Final = mutation(remove=DESTINATION_HEADERS)
"""Removes what a client may have sent as a destination. Shared: never changed."""


def destinations(picked: Picked, limit: int) -> list[str]:
    """`ip:port` of the best pod and its alternatives, in order, each pod once."""
    found: list[str] = []
    for scored in picked.decision.ranking:
        address = scored.candidate.pod.address
        if address not in found:
            found.append(address)
            if len(found) == limit:
                break
    return found


class Picks:
    """The replies that carry a pick. All but the request's id recurs: the destinations, the
    strategy and the metadata of a pick are built once and copied after that."""

    def __init__(self) -> None:
        self._built: dict[tuple[str, str, str, int | None, bool], pb.ProcessingResponse] = {}

    def reply(
        self, picked: Picked, endpoints: str, request_id: str, *, to_body: bool
    ) -> pb.ProcessingResponse:
        """What is set towards the chosen pod; `endpoints` is the list of `destinations`.

        The reply to the request's body, else to its headers.
        """
        chosen = picked.decision.chosen.candidate
        rank = chosen.rank if len(chosen.pod.ranks) > 1 else None
        key = (chosen.pod.address, endpoints, picked.strategy, rank, to_body)
        built = self._built.get(key)
        if built is None:
            if len(self._built) >= _PICKS_BUILT:
                self._built.clear()
            built = self._built[key] = _pick(*key)
        reply = pb.ProcessingResponse()
        reply.CopyFrom(built)
        common = (reply.request_body if to_body else reply.request_headers).response
        id_header = common.header_mutation.set_headers.add().header
        id_header.key, id_header.raw_value = REQUEST_ID, request_id.encode()
        return reply


def _pick(
    address: str, endpoints: str, strategy: str, rank: int | None, to_body: bool
) -> pb.ProcessingResponse:
    values = {
        TARGET_POD: safe_value(address),
        DESTINATION: safe_value(endpoints),
        STRATEGY: safe_value(strategy),
    }
    if rank is None:
        headers = mutation(values, remove=(RANK,))
    else:
        headers = mutation({**values, RANK: str(rank)})
    common = pb.CommonResponse(header_mutation=headers, clear_route_cache=True)
    reply = reply_to_request_body(common) if to_body else reply_to_request_headers(common)
    reply.dynamic_metadata.CopyFrom(pick_metadata(endpoints))
    return reply


def pick_metadata(endpoints: str) -> Struct:
    """The dynamic metadata that says the same as the header, for `override_host`."""
    inner = Struct()
    inner.fields[DESTINATION].string_value = safe_value(endpoints)
    outer = Struct()
    outer.fields[METADATA_NAMESPACE].struct_value.CopyFrom(inner)
    return outer


def debug_headers(picked: Picked) -> dict[str, str]:
    """What a client is told of the decision, where the operator allows it."""
    return {
        STRATEGY: safe_value(picked.strategy),
        TARGET_POD: safe_value(picked.decision.chosen.candidate.pod.name),
        MATCHED_TOKENS: str(picked.matched_tokens),
    }


def reply_to_request_headers(common: pb.CommonResponse) -> pb.ProcessingResponse:
    """The reply to the request's headers."""
    return pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))


def reply_to_request_body(common: pb.CommonResponse) -> pb.ProcessingResponse:
    """The reply to a body that Envoy keeps (every mode but duplex)."""
    return pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))


def _streamed(chunk: bytes, end_of_stream: bool) -> pb.BodyResponse:
    piece = pb.StreamedBodyResponse(body=chunk, end_of_stream=end_of_stream)
    return pb.BodyResponse(
        response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=piece))
    )


def _pieces(body: bytes) -> Iterator[bytes]:
    if len(body) <= CHUNK_BYTES:
        yield body
        return
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]


def echo_request_body(body: bytes, end_of_stream: bool) -> list[pb.ProcessingResponse]:
    """Duplex: the bytes back to Envoy in chunks; the last one says whether the request ends.

    Without bytes and without the end there is nothing to say.
    """
    if not body and not end_of_stream:
        return []
    pieces = list(_pieces(body))
    return [
        pb.ProcessingResponse(
            request_body=_streamed(piece, end_of_stream and number == len(pieces))
        )
        for number, piece in enumerate(pieces, start=1)
    ]


def echo_response_body(body: bytes, end_of_stream: bool) -> list[pb.ProcessingResponse]:
    """The same for an answer, where Envoy's response body mode is duplex."""
    if not body and not end_of_stream:
        return []
    pieces = list(_pieces(body))
    return [
        pb.ProcessingResponse(
            response_body=_streamed(piece, end_of_stream and number == len(pieces))
        )
        for number, piece in enumerate(pieces, start=1)
    ]


def reply_to_response_headers(set_headers: Mapping[str, str]) -> pb.ProcessingResponse:
    """The reply to the answer's headers: what the client is told."""
    reply = pb.ProcessingResponse()
    # In place: with nested constructors this takes four times as long.
    headers = reply.response_headers.response.header_mutation.set_headers
    for name, value in set_headers.items():
        header = headers.add().header
        header.key, header.raw_value = name, value.encode()
    reply.response_headers.response.header_mutation.SetInParent()
    return reply


PASS_RESPONSE_BODY: Final = pb.ProcessingResponse(
    response_body=pb.BodyResponse(response=pb.CommonResponse())
)
PASS_REQUEST_TRAILERS: Final = pb.ProcessingResponse(request_trailers=pb.TrailersResponse())
PASS_RESPONSE_TRAILERS: Final = pb.ProcessingResponse(response_trailers=pb.TrailersResponse())
STRIP: Final = pb.CommonResponse(header_mutation=STRIPPED)
"""Goes on without a pick. Never clears the route cache."""
STRIP_REQUEST_HEADERS: Final = reply_to_request_headers(STRIP)
STRIP_REQUEST_BODY: Final = reply_to_request_body(STRIP)
"""These are shared: never changed."""
