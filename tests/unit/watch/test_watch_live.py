"""Event streams over real ZMQ, watched: gaps, restarts, garbage, and who holds what."""

import time
from collections.abc import Iterator

import msgpack
import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.watch.rows import troubles
from aibrix_extproc.watch.watched import Target
from tests.kv_publisher import KvPublisher, all_cleared, removed, stored
from tests.support import eventually, free_port
from tests.unit.watch.watch_rig import (
    EXACT,
    PARTIAL,
    becomes,
    connected,
    row_of,
    target,
    watching,
)


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


def test_what_an_engine_sends_is_counted(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.publish(stored([1, 2, 3]))
        engine.publish(removed([3]), stored([4], parent=2))
        row = becomes(station, "a", lambda row: row.messages == 2 and row.held == 3)
        assert (row.stored, row.removed, row.missing, row.undecodable) == (4, 1, 0, {})
        assert (row.state, row.first, row.sequence) == (EXACT, 0, 1)
        assert (row.block_sizes, row.media, row.adapters) == ((4,), ("GPU",), ())
        assert row.lag_s is not None
        assert row.bytes_per_s
        engine.publish(all_cleared())
        assert becomes(station, "a", lambda row: row.held == 0).cleared == 1


def test_a_gap_is_named_and_refilled_from_the_replay_port(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.publish(stored([1]))
        engine.publish(stored([2], parent=1), lost=True)
        engine.publish(stored([3], parent=2))
        row = becomes(station, "a", lambda row: row.refilled == 1 and row.held == 3)
        assert (row.gaps, row.missing, row.state) == (1, 0, EXACT)
        assert troubles(station.view()) == []


def test_a_burnt_number_stays_missing_by_name(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.publish(stored([1]))
        engine.burn()
        engine.publish(stored([3]))
        row = becomes(station, "a", lambda row: row.held == 1 and row.state == PARTIAL)
        assert (row.holes, row.gaps) == (((1, 1),), 1)
        assert troubles(station.view()) == ["a: 1 missing (1)"]


def test_without_a_replay_port_nobody_is_asked(engine: KvPublisher) -> None:
    with watching(target("a", engine, replay=False)) as station:
        connected(station)
        engine.publish(stored([1]))
        engine.publish(stored([2], parent=1), lost=True)
        engine.publish(stored([3], parent=2))
        row = becomes(station, "a", lambda row: row.messages == 2 and row.missing == 1)
        assert row.replayed == 0
        assert engine.asked_from == []


def test_a_restarted_engine_begins_anew(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.publish(stored([1, 2]))
        engine.burn()
        engine.publish(stored([3]))
        becomes(station, "a", lambda row: row.missing == 1)
        engine.restart()
        eventually(lambda: row_of(station, "a").connected)
        engine.publish(stored([7]))
        row = becomes(station, "a", lambda row: row.restarts == 1 and row.held == 1)
        assert row.missing == 0
        assert row.sequence == 0


def test_garbage_is_counted_by_its_reason_and_harms_nothing(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.publish(stored([1]))
        engine.publish_raw([b"one frame"])
        engine.publish_raw([b"t", b"short", b"x"])
        engine.publish(stored([2], parent=1))
        row = becomes(station, "a", lambda row: row.messages == 4 and row.held == 2)
        assert row.undecodable == {"frame_count": 1, "sequence": 1}
        assert row.state == EXACT
        (told,) = troubles(station.view())
        assert told == "a: 1 undecodable (frame_count); 1 undecodable (sequence)"


def test_a_payload_that_cannot_be_read_is_undecodable(engine: KvPublisher) -> None:
    with watching(target("a", engine, replay=False)) as station:
        connected(station)
        engine.publish_raw([b"t", (0).to_bytes(8, "big"), b"\xc1garbage"])
        row = becomes(station, "a", lambda row: bool(row.undecodable))
        assert row.undecodable == {"payload": 1}


def test_who_is_not_reached_is_told() -> None:
    nobody = Target("gone", Rank(0, f"tcp://127.0.0.1:{free_port()}"))
    with watching(nobody) as station:
        assert troubles(station.view()) == ["gone: not reached"]
        assert not station.settled()


def test_a_connection_that_ends_is_told(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        engine.stop()
        becomes(station, "a", lambda row: row.connected is False)
        assert troubles(station.view()) == ["a: the connection is gone"]


def test_who_holds_what_compares_the_prompts_of_engines_with_other_hashes() -> None:
    """The same two blocks under other hashes, and one block that only the first has."""
    with (
        KvPublisher() as one,
        KvPublisher() as other,
        watching(target("a", one), target("b", other)) as station,
    ):
        connected(station)
        shared = stored([1, 2]), {**stored([1, 2]), "block_hashes": [901, 902]}
        one.publish(shared[0], stored([3], parent=2))
        other.publish(shared[1])
        becomes(station, "a", lambda row: row.held == 3)
        becomes(station, "b", lambda row: row.held == 2)
        found = station.final().holdings
    assert found is not None
    assert (found.blocks, found.shared) == (3, 2)
    assert [(g.holders, g.blocks, g.depths) for g in found.groups] == [
        (("a", "b"), 2, (0, 1)),
        (("a",), 1, (2, 2)),
    ]
    assert [(p.one, p.other, p.shared, p.share) for p in found.pairs] == [("a", "b", 2, 1.0)]


def test_lag_is_the_age_of_a_batch_at_its_arrival(engine: KvPublisher) -> None:
    with watching(target("a", engine)) as station:
        connected(station)
        payload = msgpack.packb([time.time() - 60, [stored([1])], 0])
        engine.publish_raw([b"t", (0).to_bytes(8, "big"), payload])
        row = becomes(station, "a", lambda row: row.lag_s is not None)
        assert row.lag_s is not None
        assert 60 <= row.lag_s < 90
