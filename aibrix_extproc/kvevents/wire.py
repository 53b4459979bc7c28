"""The ZMQ frames of an engine's event stream and of its replay, as bytes in and values out.

Owns the shapes of vLLM 0.9.0 to 0.33.0 and of SGLang. Knows no socket, and does not look into
a payload: that is the index's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SEQUENCE_BYTES: Final = 8
END_OF_REPLAY: Final = b"\xff" * SEQUENCE_BYTES
"""In the place of a sequence: no more replies follow. As a number it is -1."""


class BadFrame(StrEnum):
    """Why a message is no event batch: the labels of `aibrix_kv_bad_frames_total`."""

    COUNT = "frame_count"
    DELIMITER = "delimiter"
    TOPIC = "topic"
    SEQUENCE = "sequence"
    PAYLOAD = "empty_payload"


class BadFrames(ValueError):
    """A message that is no event batch; `reason` says why."""

    def __init__(self, reason: BadFrame) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Batch:
    """One event batch as an engine published it; `payload` is msgpack, not yet read."""

    topic: str
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ReplayBatch:
    """One batch out of the engine's replay buffer."""

    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ReplayEnd:
    """The engine has sent all that it still holds."""


def parse_live(frames: Sequence[bytes]) -> Batch:
    """Read `[topic, sequence, payload]`, what PUB sends. Raises BadFrames."""
    if len(frames) != 3:
        raise BadFrames(BadFrame.COUNT)
    topic, sequence, payload = frames
    try:
        name = topic.decode()
    except UnicodeDecodeError:
        raise BadFrames(BadFrame.TOPIC) from None
    return Batch(name, _sequence(sequence), _payload(payload))


def replay_request(start: int) -> list[bytes]:
    """What a DEALER sends to ask for every batch with sequence ≥ `start`.

    The engine reads a REQ's envelope, so the empty frame must be there, and the number must be
    8 bytes long: a request of another shape gets no reply at all.
    """
    return [b"", start.to_bytes(SEQUENCE_BYTES, "big")]


def parse_replay(frames: Sequence[bytes]) -> ReplayBatch | ReplayEnd:
    """Read one reply as a DEALER receives it. Raises BadFrames.

    `["", sequence, payload]` up to vLLM 0.25, `["", topic, sequence, payload]` from 0.26: what
    counts stands at the end in both. The end marker's payload is empty.
    """
    if len(frames) not in (3, 4):
        raise BadFrames(BadFrame.COUNT)
    if frames[0]:
        raise BadFrames(BadFrame.DELIMITER)
    sequence, payload = frames[-2:]
    if sequence == END_OF_REPLAY:
        return ReplayEnd()
    return ReplayBatch(_sequence(sequence), _payload(payload))


def _sequence(frame: bytes) -> int:
    if len(frame) != SEQUENCE_BYTES or frame == END_OF_REPLAY:
        raise BadFrames(BadFrame.SEQUENCE)
    return int.from_bytes(frame, "big")


def _payload(frame: bytes) -> bytes:
    if not frame:
        raise BadFrames(BadFrame.PAYLOAD)
    return frame
