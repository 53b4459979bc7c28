"""The publisher over real sockets: live frames, replay, and the faults it can be asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import pytest
import zmq

from aibrix_extproc.fakes.events import (
    REPLAY_TOPIC_SINCE,
    AllBlocksCleared,
    BlockRemoved,
    Event,
    EventEncoder,
    parse_version,
)
from aibrix_extproc.fakes.publisher import END_OF_REPLAY, EventPublisher
from tests.recordings import recorded
from tests.support import eventually, free_port
from tests.unit.fakes.test_fakes_events import BATCHES

WAIT_MS = 5000


@contextmanager
def publisher(version: str = "0.32.0", **options: object) -> Iterator[EventPublisher]:
    number = parse_version(version)
    made = EventPublisher(
        EventEncoder(number).encode,
        replay_names_topic=number >= REPLAY_TOPIC_SINCE,
        **options,  # type: ignore[arg-type]
    )
    try:
        yield made
    finally:
        made.close()


@contextmanager
def subscribed(to: EventPublisher) -> Iterator[zmq.Socket[bytes]]:
    """A SUB socket whose subscription has arrived: a first batch is published until it is seen."""
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(f"tcp://127.0.0.1:{to.port}")

    def seen() -> bool:
        to.publish([AllBlocksCleared()], 0.0)
        return bool(socket.poll(50))

    try:
        eventually(seen)
        while socket.poll(100):
            socket.recv_multipart()
        yield socket
    finally:
        context.destroy(linger=0)


def receive(socket: "zmq.Socket[bytes]") -> tuple[bytes, int, object]:
    """(topic, sequence, events) of the next live batch."""
    assert socket.poll(WAIT_MS), "no batch arrived"
    topic, sequence, payload = socket.recv_multipart()
    return topic, int.from_bytes(sequence, "big"), msgpack.unpackb(payload)[1]


def replay(of: EventPublisher, start: int) -> list[list[bytes]]:
    """Everything that the replay port answers, the end marker last."""
    eventually(lambda: of.sent_all)
    context = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.connect(f"tcp://127.0.0.1:{of.replay_port}")
        socket.send_multipart([b"", start.to_bytes(8, "big")])
        answers = []
        while not answers or answers[-1][-2] != END_OF_REPLAY:
            assert socket.poll(WAIT_MS), "the replay does not end"
            answers.append(socket.recv_multipart())
        return answers
    finally:
        context.destroy(linger=0)


def removal(name: int) -> list[Event]:
    return [BlockRemoved([name], group_idx=0)]


def names(answers: list[list[bytes]]) -> list[int]:
    """Sequences of replayed batches, without the end marker."""
    return [int.from_bytes(frames[-2], "big") for frames in answers[:-1]]


def test_a_batch_is_three_frames_and_numbers_grow_by_one() -> None:
    with publisher(topic="kv@pod@m") as engine, subscribed(engine) as socket:
        first = engine.sequence
        for name in (1, 2):
            engine.publish(removal(name), 1.0)
        one, two = receive(socket), receive(socket)
        assert (one[0], one[1], two[1]) == (b"kv@pod@m", first, first + 1)
        assert one[2] == [
            {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0}
        ]


def test_a_step_without_events_publishes_nothing() -> None:
    with publisher() as engine, subscribed(engine) as socket:
        first = engine.sequence
        engine.publish([])
        engine.publish(removal(1))
        assert receive(socket)[1] == first


@pytest.mark.parametrize("version", ["0.9.0.post2", "0.25.0", "0.26.0", "0.33.0"])
def test_a_replay_is_answered_frame_for_frame_as_the_recorded_version_does(version: str) -> None:
    rows = recorded("publisher_matrix")
    expected = [
        [bytes.fromhex(frame) for frame in row["frames_hex"]]
        for row in rows
        if row["vllm"] == version and row["src"] != "live"
    ]
    with publisher(version, topic="kv@127.0.0.1:8000@m") as engine:
        for number in range(8):
            if number == 6:
                engine.burn_next()
            engine.publish(BATCHES.get(number, removal(1)), 1234.5)
        assert replay(engine, 3) == expected


def test_a_replay_from_above_the_last_number_is_the_end_marker_alone() -> None:
    with publisher() as engine:
        engine.publish(removal(1))
        assert names(replay(engine, 5)) == []


def test_the_buffer_forgets_the_oldest_batches() -> None:
    with publisher(buffer_steps=2) as engine:
        for name in range(5):
            engine.publish(removal(name))
        assert names(replay(engine, 0)) == [3, 4]


def test_a_dropped_batch_is_missing_live_and_present_in_a_replay() -> None:
    with publisher() as engine, subscribed(engine) as socket:
        first = engine.sequence
        engine.drop_next()
        engine.publish(removal(1))
        engine.publish(removal(2))
        assert receive(socket)[1] == first + 1
        assert names(replay(engine, first)) == [first, first + 1]


def test_a_burnt_number_is_nowhere() -> None:
    with publisher() as engine, subscribed(engine) as socket:
        first = engine.sequence
        engine.burn_next(2)
        for name in range(3):
            engine.publish(removal(name))
        assert receive(socket)[1] == first + 2
        assert names(replay(engine, first)) == [first + 2]


def test_a_batch_that_cannot_be_encoded_burns_its_number() -> None:
    with publisher() as engine, subscribed(engine) as socket:
        first = engine.sequence
        engine.publish([BlockRemoved([2**64])])
        engine.publish(removal(1))
        assert receive(socket)[1] == first + 1
        assert names(replay(engine, first)) == [first + 1]


def test_an_engine_that_starts_again_on_the_same_port_counts_from_0() -> None:
    port = free_port()
    for _ in range(2):
        with publisher(port=port) as engine:
            engine.publish(removal(1))
            assert names(replay(engine, 0)) == [0]
            assert engine.port == port


def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    with publisher() as engine, pytest.raises(OSError, match=str(engine.port)):
        EventPublisher(EventEncoder((0, 32, 0)).encode, port=engine.port)


def test_without_a_replay_port_there_is_none() -> None:
    with publisher(replay_port=None) as engine:
        assert engine.replay_port is None


def test_a_malformed_replay_request_is_not_answered_and_harms_nothing() -> None:
    with publisher() as engine:
        engine.publish(removal(1))
        context = zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(f"tcp://127.0.0.1:{engine.replay_port}")
            socket.send_multipart([(0).to_bytes(8, "big")])
            assert names(replay(engine, 0)) == [0]
            assert not socket.poll(0)
        finally:
            context.destroy(linger=0)
