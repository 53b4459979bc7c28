"""Sequences of ext_proc messages that no Envoy would send: honest ones, taken apart."""

import json
import random
from dataclasses import dataclass
from typing import Any, Final

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    CHAT,
    DUPLEX,
    NONE,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from tests.unit.extproc.hostile_bodies import hostile_body

MAX_BODY_BYTES: Final = 64 * 1024
GOOD_BODY: Final = json.dumps({"model": "tiny", "prompt": "once upon a time"}).encode()


@dataclass(frozen=True)
class Send:
    """One message, as the bytes of a protobuf or of none."""

    message: bytes
    kind: str


@dataclass(frozen=True)
class Wait:
    """Read one reply before going on, if there is one."""


@dataclass(frozen=True)
class HalfClose:
    """No more messages come; replies are still read."""


@dataclass(frozen=True)
class Leave:
    """The stream is cancelled."""


Step = Send | Wait | HalfClose | Leave


def _send(message: pb.ProcessingRequest, kind: str = "") -> Send:
    return Send(message.SerializeToString(), kind or str(message.WhichOneof("request")))


def _honest(rng: random.Random, mode: int) -> list[Step]:
    """What Envoy sends of one request, now and then with trailers."""
    response_mode = rng.choice([NONE, NONE, DUPLEX, BUFFERED])
    head = request_headers(rng.choice([CHAT, "/v1/completions"]), mode=mode,
                           response_mode=response_mode)  # fmt: skip
    body = GOOD_BODY if rng.random() < 0.7 else hostile_body(rng).body[:MAX_BODY_BYTES]
    steps: list[Step] = [_send(head)]
    if mode == DUPLEX:
        cut = rng.randint(0, len(body))
        steps += [_send(request_body(body[:cut], end=False))]
        steps += [_send(request_body(body[cut:], end=rng.random() < 0.8))]
    else:
        steps += [Wait(), _send(request_body(body, end=rng.random() < 0.9)), Wait()]
    if rng.random() < 0.3:
        steps.append(_send(request_trailers()))
    steps.append(_send(response_headers(rng.choice(["200", "503"]), end=rng.random() < 0.3)))
    if rng.random() < 0.4:
        steps += [_send(response_body(b"x" * rng.randrange(200), end=rng.random() < 0.5))]
    if rng.random() < 0.2:
        steps.append(_send(response_trailers()))
    return steps


_PATHS: Final = [CHAT, "/v1/completions?x", "/v1/models", "/v1/embeddings", "", "/", "\0", "*",
                 "/v1/chat/completions/../..", "é" * 500, "/" + "a" * 20_000]  # fmt: skip
_LENGTHS: Final = ["0", "-1", "1e9", "99999999999", "9" * 5000, "x", "", "0x10", "٣"]


def _odd_head(rng: random.Random, mode: int) -> Send:
    """Headers with something wrong about them."""
    message = request_headers(
        rng.choice(_PATHS),
        rng.choice(["POST", "GET", "post", "", "CONNECT", "\n"]),
        mode=rng.choice([mode, mode, None, BUFFERED, NONE, 1, 3, 77]),
        response_mode=rng.choice([NONE, BUFFERED, DUPLEX, 99]),
        end=rng.random() < 0.3,
        raw=rng.random() < 0.8,
        subset=rng.choice([None, "", "10.0.0.1:80", ["127.0.0.1:1", ""], "," * 3000]),
        content_length=rng.choice(_LENGTHS),
        routing_strategy=rng.choice(["", "random", "no-such", "\r\nx: y", "é"]),
        external_filter=rng.choice(["", "a=b", "a in (", "!" * 3000, "a=b," * 1000]),
    )
    headers = message.request_headers.headers.headers
    for _ in range(rng.choice([0, 0, 1, 300])):
        name = rng.choice(
            [":path", ":method", "x-request-id", "", "X" * 9000, ":authority", "cookie"]
        )
        headers.add(key=name, raw_value=rng.choice([b"", b"\xff\xfe", b"x" * 9000, b"\r\n", b"/"]))
    if rng.random() < 0.2:
        del headers[: rng.randint(1, len(headers))]
    return _send(message, "odd headers")


def _odd_message(rng: random.Random, mode: int) -> Send:
    """Any message at all, or none that can be read."""
    match rng.randrange(12):
        case 0:
            return Send(rng.randbytes(rng.randrange(1, 60)), "noise")
        case 1:
            return Send(b"", "empty")
        case 2:
            cut = _odd_head(rng, mode).message
            return Send(cut[: rng.randrange(len(cut))], "cut off")
        case 3:
            body = b"x" * rng.choice([MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 2 * MAX_BODY_BYTES])
            return _send(request_body(body, end=rng.random() < 0.5), "large body")
        case 4:
            return _send(request_trailers())
        case 5:
            return _send(
                response_headers(rng.choice(["", "0", "abc", "204"]), end=rng.random() < 0.5)
            )
        case 6:
            return _send(response_body(rng.randbytes(rng.randrange(90)), end=rng.random() < 0.5))
        case 7:
            return _send(response_trailers())
        case 8:
            return _send(request_body(b"", end=rng.random() < 0.5))
        case 9:
            return _send(request_body(hostile_body(rng).body[:MAX_BODY_BYTES], rng.random() < 0.5))
        case _:
            return _odd_head(rng, mode)


def hostile_sequence(rng: random.Random, mode: int) -> list[Step]:
    """An honest sequence with one to five steps out of place; it may end in any way."""
    steps = _honest(rng, mode)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(steps))
        match rng.randrange(8):
            case 0 if len(steps) > 1:
                del steps[at]
            case 1:
                steps.insert(at, steps[at])
            case 2:
                other = rng.randrange(len(steps))
                steps[at], steps[other] = steps[other], steps[at]
            case 3:
                steps.insert(at, Wait())
            case 4:
                del steps[at + 1 :]
            case 5:
                steps[at] = _odd_head(rng, mode)
            case _:
                steps.insert(at, _odd_message(rng, mode))
    end: Any = rng.choice([HalfClose(), HalfClose(), Leave()])
    return [*steps, end]
