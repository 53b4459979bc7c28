"""Event sync over real ZMQ: sources that go on from what was saved."""

from collections.abc import Callable
from dataclasses import dataclass

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
from tests.kv_publisher import KvPublisher, payload_of, stored
from tests.unit.kvevents.subscriber_rig import EXACT, MODEL, POD, Station, fill


@dataclass
class Saved:
    """What another process saved: these blocks, as of this batch."""

    index: PrefixIndex
    hashes: list[int]
    checkpoint: Checkpoint | None

    def restore(self, source: int) -> Checkpoint | None:
        self.index.apply(source, payload_of(stored(self.hashes)))
        return self.checkpoint


class Broken:
    """What cannot be read."""

    def restore(self, source: int) -> Checkpoint | None:
        raise OSError("the disk is gone")


class TestResume:
    def test_a_source_goes_on_from_what_another_index_held(
        self, stations: Callable[..., Station], engine: KvPublisher
    ) -> None:
        before = stations()
        source = before.follow(engine)
        fill(engine, 1, 4)
        before.reaches(source, EXACT, 4)
        feed = before.subscriber.feed(source)
        assert feed is not None
        saved = feed.at_checkpoint(lambda source: before.index.stats().per_source[source])
        assert saved is not None
        checkpoint, placements = saved
        assert (checkpoint.sequence, checkpoint.complete, placements) == (3, True, 4)
        fill(engine, 5, 6)

        after = stations()
        resumed = after.index.add_source(MODEL)
        rank = Rank(0, engine.endpoint, engine.replay_endpoint)
        after.subscriber.add(resumed, POD, rank, Saved(after.index, [1, 2, 3, 4], checkpoint))
        after.reaches(resumed, EXACT, 6)
        assert after.cleared == []
        assert engine.asked_from[-1] == 3

    def test_where_the_engine_is_another_it_starts_clean(
        self, station: Station, engine: KvPublisher
    ) -> None:
        fill(engine, 1, 4)
        source = station.index.add_source(MODEL)
        rank = Rank(0, engine.endpoint, engine.replay_endpoint)
        checkpoint = Checkpoint(2, digest_of(b"of another process"), complete=True)
        station.subscriber.add(source, POD, rank, Saved(station.index, [70, 71, 72], checkpoint))
        station.reaches(source, EXACT, 4)
        assert station.index.stats().per_source[source] == 4
        assert station.cleared == [source]

    def test_where_what_was_saved_cannot_be_used_it_starts_clean(
        self, station: Station, engine: KvPublisher
    ) -> None:
        fill(engine, 1, 4)
        rank = Rank(0, engine.endpoint, engine.replay_endpoint)
        for saved in (Saved(station.index, [], None), Broken()):
            source = station.index.add_source(MODEL)
            station.subscriber.add(source, POD, rank, saved)
            station.reaches(source, EXACT, 4)
            assert engine.asked_from[-1] == 0

    def test_there_is_no_checkpoint_before_a_batch_and_after_a_clear(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        station.reaches(source, EXACT, 0)
        feed = station.subscriber.feed(source)
        assert feed is not None
        assert feed.at_checkpoint(lambda source: source) is None
        fill(engine, 1, 1)
        station.reaches(source, EXACT, 1)
        assert feed.at_checkpoint(lambda source: source) is not None
        engine.restart()
        station.reaches(source, EXACT, 0)
        assert feed.at_checkpoint(lambda source: source) is None
