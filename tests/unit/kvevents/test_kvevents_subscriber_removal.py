"""Event sync over real ZMQ: sources that go, and an index that breaks."""

import threading
from collections.abc import Callable

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import Applied, PrefixIndex
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, stored, tokens_of
from tests.support import eventually
from tests.unit.kvevents.subscriber_rig import EXACT, MODEL, PARTIAL, POD, Station, fill


class RecordingIndex(PrefixIndex):
    """The real index, which also notes what it is given and can fail on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[int] = set()
        self.applied_when_gone = 0
        self.fail_next = False

    def apply(self, source: int, payload: bytes) -> Applied:
        if source in self.gone:
            self.applied_when_gone += 1
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("on demand")
        return super().apply(source, payload)


class TestRemoval:
    def test_nothing_is_applied_after_it_and_its_series_are_gone(
        self, stations: Callable[..., Station], engine: KvPublisher
    ) -> None:
        index = RecordingIndex()
        station = stations(index)
        stop = threading.Event()

        def keep_publishing() -> None:
            while not stop.is_set():
                engine.publish(stored([40, 41, 42]))

        publisher = threading.Thread(target=keep_publishing)
        publisher.start()
        try:
            for _ in range(15):
                source = station.follow(engine)
                eventually(lambda s=source: station.index.stats().per_source.get(s, 0) > 3)
                station.subscriber.remove(source)
                index.gone.add(source)
                index.remove_source(source)
        finally:
            stop.set()
            publisher.join()
        assert index.applied_when_gone == 0
        assert station.subscriber.feed(source) is None
        series = [
            sample
            for family in station.metrics.registry.collect()
            for sample in family.samples
            if "pod" in sample.labels
        ]
        assert series == []

    def test_removing_one_leaves_the_others(self, station: Station, engine: KvPublisher) -> None:
        gone, stays = station.follow(engine, rank=0), station.follow(engine, rank=1)
        fill(engine, 1, 2)
        station.reaches(gone, EXACT, 2)
        station.remove(gone)
        fill(engine, 3, 4)
        station.reaches(stays, EXACT, 4)

    def test_an_unknown_source_is_ignored(self, station: Station) -> None:
        station.subscriber.remove(12345)

    def test_a_rank_without_events_cannot_be_followed(self, station: Station) -> None:
        with pytest.raises(ValueError, match="no events"):
            station.subscriber.add(1, POD, Rank())


class TestOurOwnErrors:
    def test_a_batch_that_we_fail_on_clears_its_source_and_the_thread_goes_on(
        self, stations: Callable[..., Station], engine: KvPublisher
    ) -> None:
        index = RecordingIndex()
        station = stations(index, kv_subscriber_threads=1)
        source, other = station.follow(engine), station.follow(engine, rank=1)
        fill(engine, 1, 2)
        station.reaches(source, EXACT, 2)
        station.reaches(other, EXACT, 2)
        index.fail_next = True
        engine.publish(stored([3], parent=2))
        eventually(lambda: {station.state(source), station.state(other)} == {EXACT, PARTIAL})
        assert station.count("aibrix_kv_source_clears_total", reason="error") == 1
        fill(engine, 1, 1)
        eventually(lambda: station.depth(source) >= 1 and station.depth(other) >= 1)

    def test_a_failing_listener_makes_the_source_start_over(self) -> None:
        index, metrics, calls = PrefixIndex(), Metrics(), []

        def on_clear(source: int) -> None:
            calls.append(source)
            if len(calls) == 1:
                raise RuntimeError("on demand")

        subscriber = Subscriber(index, Settings(kv_replay_timeout_s=0.5), metrics, on_clear)
        try:
            with KvPublisher() as engine:
                source = index.add_source(MODEL)
                subscriber.add(source, POD, Rank(0, engine.endpoint, engine.replay_endpoint))
                fill(engine, 1, 2)
                engine.burn()
                fill(engine, 1, 2)
                tokens = tokens_of([1, 2])
                eventually(lambda: len(calls) >= 2)
                eventually(lambda: index.match(MODEL, tokens) == {source: 2})
        finally:
            subscriber.close()
