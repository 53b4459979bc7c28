"""What Envoy would make of a picker's replies: the headers and the body that the pod gets.

Owns the rules of Envoy 1.40 for mutations. Knows no vector.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from google.protobuf.json_format import MessageToDict

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.exchange import Exchange

DESTINATION: Final = "x-gateway-destination-endpoint"
NAMESPACE: Final = "envoy.lb"

Common = pb.CommonResponse


def common_of(reply: pb.ProcessingResponse) -> Common | None:
    """The common part of a reply to headers or a body; None for the others."""
    kind = reply.WhichOneof("response")
    if kind is None or kind in ("immediate_response", "request_trailers", "response_trailers"):
        return None
    common: Common = getattr(reply, kind).response
    return common


def mutations(reply: pb.ProcessingResponse) -> pb.HeaderMutation:
    """The header mutation of a reply, wherever it stands; empty where there is none."""
    kind = reply.WhichOneof("response")
    if kind == "immediate_response":
        return reply.immediate_response.headers
    if kind in ("request_trailers", "response_trailers"):
        trailers: pb.HeaderMutation = getattr(reply, kind).header_mutation
        return trailers
    common = common_of(reply)
    return common.header_mutation if common is not None else pb.HeaderMutation()


def set_by(mutation: pb.HeaderMutation) -> dict[str, str]:
    """What a mutation sets: `raw_value` alone, for `value` gives an empty header."""
    return {
        option.header.key.lower(): option.header.raw_value.decode("utf-8", "replace")
        for option in mutation.set_headers
    }


def removed_by(mutation: pb.HeaderMutation) -> set[str]:
    """The names that a mutation removes."""
    return {name.lower() for name in mutation.remove_headers}


def sent_headers(headers: pb.HttpHeaders | None) -> dict[str, str]:
    """What the client sent; `raw_value` first."""
    if headers is None:
        return {}
    return {
        header.key.lower(): header.raw_value.decode("utf-8", "replace") or header.value
        for header in headers.headers.headers
    }


def effective(exchange: Exchange) -> Iterator[tuple[str, pb.ProcessingResponse]]:
    """The replies whose header mutations reach the request, with their kind.

    Those to the headers; those to a body in BUFFERED alone.
    """
    for reply in exchange.got:
        kind = reply.WhichOneof("response")
        if kind == "request_headers" or (kind == "request_body" and not exchange.duplex):
            yield kind, reply


def pod_headers(exchange: Exchange) -> Mapping[str, str]:
    """The request's headers as the router sees them: a removal first, then what is set."""
    headers = sent_headers(exchange.request_head)
    for _, reply in effective(exchange):
        mutation = mutations(reply)
        for name in removed_by(mutation):
            headers.pop(name, None)
        headers |= set_by(mutation)
    return headers


def pick_replies(exchange: Exchange) -> list[tuple[str, pb.ProcessingResponse]]:
    """The replies that carry a pick, by header or by metadata."""
    return [
        (kind, reply)
        for kind, reply in effective(exchange)
        if DESTINATION in set_by(mutations(reply)) or metadata_of(reply) is not None
    ]


def metadata_of(reply: pb.ProcessingResponse) -> object | None:
    """What the reply's dynamic metadata say of the pick; None where they say nothing."""
    values = MessageToDict(reply.dynamic_metadata).get(NAMESPACE)
    return values.get(DESTINATION) if isinstance(values, dict) else None


def picked(exchange: Exchange) -> str | None:
    """The list of endpoints that the picker set as a header; None where it set none."""
    found = None
    for _, reply in effective(exchange):
        found = set_by(mutations(reply)).get(DESTINATION, found)
    return found


def chunks(exchange: Exchange, kind: str = "request_body") -> list[pb.StreamedBodyResponse]:
    """The pieces of the body that went back, in order."""
    found = []
    for reply in exchange.got:
        if reply.WhichOneof("response") == kind:
            common = common_of(reply)
            if common is not None and common.body_mutation.HasField("streamed_response"):
                found.append(common.body_mutation.streamed_response)
    return found


def echo_ended(exchange: Exchange, kind: str = "request_body") -> bool:
    """Whether the picker has sent the end of the body."""
    return any(chunk.end_of_stream for chunk in chunks(exchange, kind))


def has_replied(exchange: Exchange, kind: str, times: int = 1) -> bool:
    """Whether that many replies of a kind have come."""
    return sum(reply.WhichOneof("response") == kind for reply in exchange.got) >= times
