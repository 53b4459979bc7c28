"""Hostile bodies through the real stream, in both body modes: always a defined answer.

2,000 bodies at scale 1. A pick, a request passed on, or an error of OpenAI's shape; in duplex the
body comes back byte for byte. Nothing breaks inside, and nothing is left over.
"""

import asyncio
import json
from typing import Any

import grpc
import pytest

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.hostile import bounded_memory, chunks, rng_of
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    DUPLEX,
    common,
    request_body,
    request_headers,
    response_headers,
    set_headers,
)
from tests.unit.extproc.extproc_rig import faults_told
from tests.unit.extproc.hostile_bodies import VALID, HostileBody, hostile_body
from tests.unit.extproc.hostile_rig import HostileRig, drain, ends_allowed, hostile_rig

pytestmark = pytest.mark.hostile

CHUNK = 100
CHUNKS = 20
AT_ONCE = 4
MEMORY_LIMIT_BYTES = 128 << 20
REQUESTS = "aibrix_extproc_requests_total"


async def asked(rig: HostileRig, made: HostileBody, mode: int) -> list[pb.ProcessingResponse]:
    """Send one request as Envoy would, and its answer's headers; all replies."""
    call = rig.open()
    head = request_headers(made.path, mode=mode, **made.headers)
    body, cut = made.body, len(made.body) // 2
    pieces = [request_body(body)]
    if mode == DUPLEX:
        pieces = [request_body(body[:cut], end=False), request_body(body[cut:])]
    with ends_allowed():  # an answer of the server's own ends it early
        for message in (head, *pieces, response_headers(end=True)):
            await call.write(message.SerializeToString())
        await call.done_writing()
    replies: list[pb.ProcessingResponse] = []
    assert await drain(call, replies) is grpc.StatusCode.OK, made
    return replies


def check_error(response: pb.ImmediateResponse, made: HostileBody) -> str:
    """The error is one that a client can read; returns its code."""
    assert response.status.code in (400, 404, 413), made
    error = json.loads(response.body)["error"]
    assert set(error) == {"message", "type", "code", "param"}
    for option in response.headers.set_headers:
        assert option.header.raw_value.decode().isprintable()
    return str(error["code"])


def check(replies: list[pb.ProcessingResponse], made: HostileBody, mode: int) -> str:
    """Whether these are all the replies that are owed; returns what became of the request."""
    kinds = [reply.WhichOneof("response") for reply in replies]
    if kinds[-1] == "immediate_response":
        assert kinds[:-1] == (["request_headers"] if mode == BUFFERED else []), made
        return check_error(replies[-1].immediate_response, made)
    assert kinds[0] == "request_headers", made
    assert kinds[-1] == "response_headers", made
    between = replies[1:-1]
    if mode == BUFFERED:
        assert kinds[1:-1] == ["request_body"], made
        outcome = common(between[0])
    else:
        outcome = common(replies[0])
        pieces = [common(reply).body_mutation.streamed_response for reply in between]
        assert b"".join(piece.body for piece in pieces) == made.body, made
        assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return "picked" if "target-pod" in set_headers(outcome.header_mutation) else "passed"


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX], ids=["buffered", "duplex"])
@pytest.mark.parametrize("chunk", chunks(CHUNKS // 2))
async def test_hostile_bodies_get_a_defined_answer(
    mode: int, chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = rng_of(f"bodies-{mode}", chunk)
    with bounded_memory(MEMORY_LIMIT_BYTES):
        async with hostile_rig() as rig:
            room = asyncio.Semaphore(AT_ONCE)

            async def one(made: HostileBody) -> None:
                async with room:
                    check(await asked(rig, made, mode), made, mode)

            async with asyncio.TaskGroup() as group:
                for _ in range(CHUNK):
                    group.create_task(one(hostile_body(rng)))
            await rig.nothing_is_left(ends_were_seen=True)
            outcomes = [rig.count(REQUESTS, outcome=o) for o in ("picked", "passed", "refused")]
            assert sum(outcomes) == CHUNK
            assert not faults_told(caplog)


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX], ids=["buffered", "duplex"])
async def test_the_same_bodies_without_damage_are_picked(mode: int) -> None:
    """Else the tests above would ask nothing of a decision."""
    async with hostile_rig() as rig:
        for path, fields in VALID:
            body: dict[str, Any] = {"model": "tiny"} | fields
            made = HostileBody(path, json.dumps(body).encode(), {}, "none")
            assert check(await asked(rig, made, mode), made, mode) == "picked"
        await rig.nothing_is_left(ends_were_seen=True)
