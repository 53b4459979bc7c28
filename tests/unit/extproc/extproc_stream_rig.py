"""A stream without gRPC, and what its effects say."""

from collections.abc import Iterable
from typing import Any

from aibrix_extproc.extproc.decides import Outcome, RouteRequest
from aibrix_extproc.extproc.effects import Decide, Effect, Reply, Settled
from aibrix_extproc.extproc.inflight import InflightBytes
from aibrix_extproc.extproc.stream import Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings
from tests.unit.extproc.extproc_fixtures import DESTINATIONS, request_body, request_headers

SPOOFED = {
    "target_pod": "6.6.6.6:1",
    "x_gateway_destination_endpoint": "6.6.6.6:1",
    "x_data_parallel_rank": "7",
}


def make(inflight_bytes: int = 1 << 30, refusal: Any = None, **settings: Any) -> Stream:
    return Stream(
        Settings(**settings),
        InflightBytes(inflight_bytes),
        refusal=refusal,
        new_id=lambda: "new-id",
    )


def replies(effects: Iterable[Effect]) -> list[pb.ProcessingResponse]:
    return [effect.response for effect in effects if isinstance(effect, Reply)]


def one_reply(effects: Iterable[Effect]) -> pb.ProcessingResponse:
    (response,) = replies(effects)
    return response


def asked(effects: Iterable[Effect]) -> RouteRequest:
    (request,) = [effect.request for effect in effects if isinstance(effect, Decide)]
    return request


def settled(effects: Iterable[Effect]) -> list[tuple[str, str]]:
    return [(e.outcome, e.reason) for e in effects if isinstance(e, Settled)]


def up_to_decision(stream: Stream, body: bytes = b"{}", **headers: Any) -> RouteRequest:
    stream.receive(request_headers(**headers))
    return asked(stream.receive(request_body(body)))


def decided(outcome: Outcome, **settings: Any) -> tuple[Stream, list[Effect]]:
    stream = make(**settings)
    up_to_decision(stream)
    return stream, stream.decided(outcome)


def strips(common_response: pb.CommonResponse) -> bool:
    mutation = common_response.header_mutation
    return set(mutation.remove_headers) == DESTINATIONS and not mutation.set_headers
