"""What a stream refuses or lets through unseen: body modes, sizes, too many streams."""

import pytest

from aibrix_extproc.errors import BodyModeUnsupported, ModelNotFound, TooManyStreams
from aibrix_extproc.extproc.effects import Settled
from aibrix_extproc.extproc.inflight import InflightBytes
from aibrix_extproc.extproc.stream import Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.settings import Settings
from tests.unit.extproc.extproc_fixtures import (
    BUFFERED,
    DUPLEX,
    NONE,
    common,
    request_body,
    request_headers,
    set_headers,
    three_pods,
)
from tests.unit.extproc.extproc_stream_rig import (
    asked,
    make,
    one_reply,
    settled,
    strips,
    up_to_decision,
)

# -- body modes -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [NONE, pb.ProcessingMode.STREAMED, pb.ProcessingMode.GRPC, 77])
def test_a_body_that_cannot_be_read_whole_is_a_clear_error(mode: int) -> None:
    effects = make().receive(request_headers(mode=mode))
    immediate = one_reply(effects).immediate_response
    assert immediate.status.code == 500
    assert b"processing_mode.request_body_mode" in immediate.body
    (said,) = [e for e in effects if isinstance(e, Settled)]
    assert isinstance(said.error, BodyModeUnsupported)


def test_an_envoy_that_names_no_mode_is_taken_as_buffered() -> None:
    stream = make()
    assert one_reply(stream.receive(request_headers(mode=None))).HasField("request_headers")
    assert asked(stream.receive(request_body(b"{}"))).body == b"{}"


def test_a_piece_of_a_body_in_assumed_buffered_is_a_clear_error() -> None:
    stream = make()
    stream.receive(request_headers(mode=None))
    immediate = one_reply(stream.receive(request_body(b"{", end=False))).immediate_response
    assert immediate.status.code == 500
    assert b"AIBRIX_EXTPROC_DEFAULT_BODY_MODE=duplex" in immediate.body


def test_a_setting_forces_duplex_where_none_is_named() -> None:
    stream = make(default_body_mode="duplex")
    assert stream.receive(request_headers(mode=None)) == []
    assert stream.receive(request_body(b"{", end=False)) == []
    assert asked(stream.receive(request_body(b"}"))).body == b"{}"


# -- limits -----------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_413() -> None:
    stream = make(max_body_bytes=10)
    stream.receive(request_headers())
    assert one_reply(stream.receive(request_body(b"x" * 11))).immediate_response.status.code == 413


@pytest.mark.parametrize("length", ["11", "0" * 40 + "11", "9" * 5000])
def test_content_length_over_the_limit_is_413_before_the_body(length: str) -> None:
    effects = make(max_body_bytes=10).receive(request_headers(content_length=length))
    assert one_reply(effects).immediate_response.status.code == 413


@pytest.mark.parametrize("length", ["10", "0" * 5000, "ten", "-1", "²"])
def test_other_content_lengths_say_nothing(length: str) -> None:
    effects = make(max_body_bytes=10).receive(request_headers(content_length=length))
    assert one_reply(effects).HasField("request_headers")


def test_past_the_bound_of_all_bodies_a_request_passes() -> None:
    stream = make(inflight_bytes=10)
    stream.receive(request_headers())
    effects = stream.receive(request_body(b"x" * 11))
    assert strips(common(one_reply(effects)))
    assert settled(effects) == [("passed", "inflight_bytes")]


@pytest.mark.parametrize("end", ["decided", "refused", "closed", "failed"])
def test_the_bytes_of_a_body_are_given_back(end: str) -> None:
    inflight = InflightBytes(100)
    stream = Stream(Settings(), inflight)
    up_to_decision(stream, b"x" * 60)
    assert inflight.used_bytes == 60
    {
        "decided": lambda: stream.decided(three_pods()),
        "refused": lambda: stream.refused(ModelNotFound("m")),
        "closed": stream.closed,
        "failed": lambda: stream.failed("request_body"),
    }[end]()
    assert inflight.used_bytes == 0


@pytest.mark.parametrize("mode", [BUFFERED, DUPLEX])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_too_many_streams_are_refused_at_the_headers(mode: int, method: str) -> None:
    stream = make(refusal=TooManyStreams(5))
    immediate = one_reply(stream.receive(request_headers(mode=mode, method=method)))
    assert immediate.immediate_response.status.code == 429
    assert set_headers(immediate.immediate_response.headers)["retry-after"] == "1"
