"""Frames of the event stream and of its replay, in every shape that an engine sends."""

import pytest

from aibrix_extproc.kvevents.wire import (
    BadFrame,
    BadFrames,
    Batch,
    ReplayBatch,
    ReplayEnd,
    parse_live,
    parse_replay,
    replay_request,
)

ONE = (1).to_bytes(8, "big")
END = b"\xff" * 8


def test_a_live_message_is_topic_sequence_and_payload() -> None:
    assert parse_live([b"kv@10.0.0.1@m", ONE, b"p"]) == Batch("kv@10.0.0.1@m", 1, b"p")


def test_the_topic_may_be_empty() -> None:
    assert parse_live([b"", ONE, b"p"]).topic == ""


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], BadFrame.COUNT),
        ([ONE, b"p"], BadFrame.COUNT),
        ([b"", b"", ONE, b"p"], BadFrame.COUNT),
        ([b"\xff", ONE, b"p"], BadFrame.TOPIC),
        ([b"", b"\0" * 4, b"p"], BadFrame.SEQUENCE),
        ([b"", END, b"p"], BadFrame.SEQUENCE),
        ([b"", ONE, b""], BadFrame.PAYLOAD),
    ],
)
def test_a_message_that_is_no_batch_has_a_reason(frames: list[bytes], reason: BadFrame) -> None:
    with pytest.raises(BadFrames) as raised:
        parse_live(frames)
    assert raised.value.reason is reason


def test_a_question_has_an_empty_frame_and_eight_bytes() -> None:
    assert replay_request(258) == [b"", b"\0\0\0\0\0\0\1\2"]


@pytest.mark.parametrize(
    "frames",
    [pytest.param([b"", ONE, b"p"], id="to 0.25"), pytest.param([b"", b"t", ONE, b"p"], id="0.26")],
)
def test_a_reply_is_read_from_the_right(frames: list[bytes]) -> None:
    assert parse_replay(frames) == ReplayBatch(1, b"p")


@pytest.mark.parametrize("frames", [[b"", END, b""], [b"", b"", END, b""]])
def test_the_end_marker_is_known_in_both_shapes(frames: list[bytes]) -> None:
    assert parse_replay(frames) == ReplayEnd()


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([ONE, b"p"], BadFrame.COUNT),
        ([b"", b"", b"", ONE, b"p"], BadFrame.COUNT),
        ([b"x", ONE, b"p"], BadFrame.DELIMITER),
        ([b"", b"\0", b"p"], BadFrame.SEQUENCE),
        ([b"", ONE, b""], BadFrame.PAYLOAD),
    ],
)
def test_a_reply_that_is_none_has_a_reason(frames: list[bytes], reason: BadFrame) -> None:
    with pytest.raises(BadFrames) as raised:
        parse_replay(frames)
    assert raised.value.reason is reason
