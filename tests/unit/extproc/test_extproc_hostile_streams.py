"""Hostile sequences of messages to the real service: a defined answer or a clean end, always.

2,000 sequences at scale 1: out of order, repeated, missing, half closed, cancelled, unreadable,
with headers too large and pseudo-headers wrong, and more streams at once than are allowed. Nothing
hangs, nothing breaks inside; streams, held bytes and reservations return to none, and the next
request is served.
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.hostile import bounded_memory, chunks, rng_of
from tests.support import eventually_async
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
from tests.unit.extproc.hostile_rig import HostileRig, drain, ends_allowed, hostile_rig
from tests.unit.extproc.hostile_sequences import (
    GOOD_BODY,
    MAX_BODY_BYTES,
    HalfClose,
    Leave,
    Send,
    Step,
    Wait,
    hostile_sequence,
)

pytestmark = pytest.mark.hostile

CHUNK = 100
CHUNKS = 20
AT_ONCE = 8
MAX_STREAMS = 7
MEMORY_LIMIT_BYTES = 128 << 20
WAIT_S = 0.02

ENDS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,  # the client left, or the stream ended before its outcome
    grpc.StatusCode.INVALID_ARGUMENT,  # a message that is no protobuf
    grpc.StatusCode.INTERNAL,  # the client's own library: it wrote into a stream that had ended
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a message above the limit
}


async def played(rig: HostileRig, steps: Sequence[Step]) -> None:
    """Play one sequence, and check how it ended."""
    call = rig.open()
    seen: list[pb.ProcessingResponse] = []
    ended = asyncio.ensure_future(drain(call, seen))
    with ends_allowed():
        for step in steps:
            await _play(call, step, seen)
    code = await ended
    assert code in ENDS, (code, await call.details(), [str(step)[:400] for step in steps])
    for reply in seen:
        check_reply(reply)


async def _play(call: Any, step: Step, seen: list[pb.ProcessingResponse]) -> None:
    match step:
        case Send(message):
            await call.write(message)
        case Wait():
            had = len(seen)
            with contextlib.suppress(AssertionError):
                await eventually_async(lambda: len(seen) > had or call.done(), timeout_s=WAIT_S)
        case HalfClose():
            await call.done_writing()
        case Leave():
            call.cancel()


def check_reply(reply: pb.ProcessingResponse) -> None:
    assert reply.WhichOneof("response") is not None
    if reply.HasField("immediate_response"):
        answer = reply.immediate_response
        assert answer.status.code in (200, 400, 404, 413, 429, 500, 503)
        json.loads(answer.body)


async def serves(rig: HostileRig) -> bool:
    """An honest request is still picked, and its replies come."""
    call = rig.open()
    for message in (request_headers("/v1/completions"), request_body(GOOD_BODY)):
        await call.write(message.SerializeToString())
        reply = await call.read()
    await call.write(response_headers(end=True).SerializeToString())
    await call.done_writing()
    code = await drain(call, [])
    return code is grpc.StatusCode.OK and "target-pod" in set_headers(common(reply).header_mutation)


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX], ids=["buffered", "duplex"])
@pytest.mark.parametrize("chunk", chunks(CHUNKS // 2))
async def test_hostile_sequences_end_cleanly_and_leave_nothing(
    mode: int, chunk: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = rng_of(f"sequences-{mode}", chunk)
    settings = {"max_streams": MAX_STREAMS, "max_body_bytes": MAX_BODY_BYTES,
                "max_inflight_bytes": 3 * MAX_BODY_BYTES}  # fmt: skip
    with bounded_memory(MEMORY_LIMIT_BYTES):
        async with hostile_rig(**settings) as rig:
            room = asyncio.Semaphore(AT_ONCE)

            async def one(steps: list[Step]) -> None:
                async with room:
                    await played(rig, steps)

            async with asyncio.TaskGroup() as group:
                for _ in range(CHUNK):
                    group.create_task(one(hostile_sequence(rng, mode)))
            await rig.nothing_is_left(ends_were_seen=mode == BUFFERED)
            assert await serves(rig)
            await rig.nothing_is_left(ends_were_seen=True)
            assert not faults_told(caplog)
