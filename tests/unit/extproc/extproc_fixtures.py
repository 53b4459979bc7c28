"""Builders for the tests of the stream and the service: Envoy's messages, decisions, a decider."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.extproc.decides import Outcome, Picked, RouteRequest
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored

CHAT = "/v1/chat/completions"
BUFFERED = pb.ProcessingMode.BUFFERED
DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED
NONE = pb.ProcessingMode.NONE
DESTINATIONS = {"target-pod", "x-gateway-destination-endpoint", "x-data-parallel-rank"}


def header_map(values: Mapping[str, str], raw: bool = True) -> pb.HeaderMap:
    if raw:
        pairs = [pb.HeaderValue(key=k, raw_value=v.encode()) for k, v in values.items()]
    else:
        pairs = [pb.HeaderValue(key=k, value=v) for k, v in values.items()]
    return pb.HeaderMap(headers=pairs)


def request_headers(
    path: str = CHAT,
    method: str = "POST",
    *,
    mode: int | None = BUFFERED,
    response_mode: int = NONE,
    end: bool = False,
    raw: bool = True,
    subset: Sequence[str] | str | None = None,
    **headers: str,
) -> pb.ProcessingRequest:
    """The first message; `mode=None` leaves `protocol_config` out. `_` in names becomes `-`."""
    values = {":method": method, ":path": path, "x-request-id": "req-1"}
    if method == "POST":
        values["content-type"] = "application/json"
    values |= {name.replace("_", "-"): value for name, value in headers.items()}
    message = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(
            headers=header_map({k: v for k, v in values.items() if v}, raw), end_of_stream=end
        )
    )
    if mode is not None:
        message.protocol_config.request_body_mode = mode  # type: ignore[assignment]
        message.protocol_config.response_body_mode = response_mode  # type: ignore[assignment]
    if subset is not None:
        namespace = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        namespace.update({"x-gateway-destination-endpoint-subset": subset})
    return message


def request_body(body: bytes, end: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=end))


def request_trailers() -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers())


def response_headers(
    status: str = "200", end: bool = False, served_by: str | None = None
) -> pb.ProcessingRequest:
    headers = pb.HttpHeaders(headers=header_map({":status": status}), end_of_stream=end)
    message = pb.ProcessingRequest(response_headers=headers)
    if served_by is not None:
        fields = message.attributes["envoy.filters.http.ext_proc"]
        fields.update({"upstream.address": served_by})
    return message


def response_body(body: bytes, end: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=end))


def response_trailers() -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_trailers=pb.HttpTrailers())


def pod(name: str, address: str, ranks: int = 1) -> Pod:
    return Pod(
        "default", name, f"uid-{name}", address, "llama", ranks=tuple(map(Rank, range(ranks)))
    )


def picked(*candidates: Candidate, ticket: object = "ticket", matched: int = 32) -> Picked:
    ranking = tuple(Scored(c, 32, Load(), float(i)) for i, c in enumerate(candidates))
    return Picked(
        decision=Decision("prefix-cache", "prefix", ranking),
        model="llama",
        prompt_tokens=40,
        matched_tokens=matched,
        ticket=ticket,
        strategy="prefix-cache",
    )


def three_pods(ticket: object = "ticket") -> Picked:
    """Best first: 10.0.0.1, .2, .3, .4, each one rank."""
    return picked(
        *(Candidate(n, pod(f"pod-{n}", f"10.0.0.{n}:8000")) for n in (1, 2, 3, 4)), ticket=ticket
    )


def set_headers(mutation: pb.HeaderMutation) -> dict[str, str]:
    """What a mutation sets; `value` must stay empty, as Envoy would prefer neither of two."""
    assert not any(option.header.value for option in mutation.set_headers)
    return {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}


def common(response: pb.ProcessingResponse) -> pb.CommonResponse:
    """The common part of a reply to headers or to a body."""
    kind = response.WhichOneof("response")
    assert kind is not None
    part: Any = getattr(response, kind)
    assert isinstance(part.response, pb.CommonResponse)
    return part.response


class StubDecider:
    """Decides by a function, and writes down what it was asked and told."""

    def __init__(self, outcome: Callable[[RouteRequest], Outcome] | None = None) -> None:
        self.outcome = outcome or (lambda _request: three_pods())
        self.requests: list[RouteRequest] = []
        self.done: list[object] = []
        self.served: list[tuple[str | None, bool]] = []
        self.found: list[Usage | NoUsage] = []
        self.released: list[object] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def decide(self, request: RouteRequest) -> Outcome:
        self.requests.append(request)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.outcome(request)

    def prefill_done(self, ticket: object, served_by: str | None, succeeded: bool) -> None:
        self.done.append(ticket)
        self.served.append((served_by, succeeded))

    def observed(self, ticket: object, found: Usage | NoUsage) -> None:
        self.found.append(found)

    def release(self, ticket: object) -> None:
        self.released.append(ticket)
