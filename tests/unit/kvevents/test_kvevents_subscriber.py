"""Event sync over real ZMQ, with the real index: what an engine does, and what we then know."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import Applied, PrefixIndex
from aibrix_extproc.kvevents import line, sockets
from aibrix_extproc.kvevents.checkpoint import Checkpoint, digest_of
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, all_cleared, payload_of, removed, stored, tokens_of
from tests.support import eventually, free_port

MODEL = "m"
POD = "default/pod-0"
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


class Station:
    """A subscriber with its index and metrics."""

    def __init__(self, index: PrefixIndex | None = None, **settings: float) -> None:
        self.index = index or PrefixIndex()
        self.metrics = Metrics()
        self.cleared: list[int] = []
        values: dict[str, float] = {"kv_replay_timeout_s": 0.5, "kv_lost_after_s": 30.0}
        self.new_engines: list[str] = []
        self.subscriber = Subscriber(
            self.index,
            Settings(**(values | settings)),
            self.metrics,
            self.cleared.append,
            self.new_engines.append,
        )

    def follow(self, engine: KvPublisher, *, rank: int = 0, replay: bool = True) -> int:
        source = self.index.add_source(MODEL)
        endpoint = engine.replay_endpoint if replay else None
        self.subscriber.add(source, POD, Rank(rank, engine.endpoint, endpoint))
        return source

    def remove(self, source: int) -> None:
        self.subscriber.remove(source)
        self.index.remove_source(source)

    def state(self, source: int) -> SourceState:
        feed = self.subscriber.feed(source)
        assert feed is not None
        return feed.sync.state

    def depth(self, source: int, blocks: int = 64) -> int:
        """Blocks of the prompt 1, 2, … that the source holds."""
        return self.index.match(MODEL, tokens_of(range(1, blocks + 1))).get(source, 0)

    def reaches(self, source: int, state: SourceState, depth: int) -> None:
        def there() -> bool:
            return (self.state(source), self.depth(source)) == (state, depth)

        try:
            eventually(there)
        except AssertionError:
            found = (self.state(source), self.depth(source))
            raise AssertionError(f"{found} instead of {(state, depth)}") from None

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def count_of(self, name: str) -> float:
        return self.count(name, pod=POD, rank="0")


@pytest.fixture
def stations() -> Iterator[Callable[..., Station]]:
    made: list[Station] = []

    def make(index: PrefixIndex | None = None, **settings: float) -> Station:
        made.append(Station(index, **settings))
        return made[-1]

    yield make
    for station in made:
        station.subscriber.close()


@pytest.fixture
def station(stations: Callable[..., Station]) -> Station:
    return stations()


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


def fill(engine: KvPublisher, first: int, last: int) -> None:
    """One batch for each of these blocks of the prompt 1, 2, …"""
    for block in range(first, last + 1):
        engine.publish(stored([block], parent=block - 1 or None))


class TestFirstConnection:
    @pytest.mark.parametrize("replay_has_topic", [False, True])
    def test_what_was_published_before_us_comes_by_replay(
        self, station: Station, replay_has_topic: bool
    ) -> None:
        with KvPublisher(replay_has_topic=replay_has_topic) as engine:
            fill(engine, 1, 5)
            source = station.follow(engine)
            station.reaches(source, EXACT, 5)
            assert engine.asked_from[0] == 0
            fill(engine, 6, 7)
            station.reaches(source, EXACT, 7)

    def test_an_engine_without_a_batch_is_exact(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        station.reaches(source, EXACT, 0)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)

    def test_an_engine_that_starts_after_us_is_exact(self, station: Station) -> None:
        engine = KvPublisher()
        engine.stop()
        source = station.follow(engine)
        assert station.state(source) is SourceState.CONNECTING
        with engine:
            engine.start()
            fill(engine, 1, 3)
            station.reaches(source, EXACT, 3)

    def test_a_buffer_that_lost_its_beginning_makes_it_partial(self, station: Station) -> None:
        with KvPublisher(buffer_steps=4) as engine:
            engine.publish(stored([100]))
            fill(engine, 1, 4)
            source = station.follow(engine)
            station.reaches(source, PARTIAL, 4)
            engine.publish(all_cleared())
            station.reaches(source, EXACT, 0)

    def test_without_a_replay_port_it_is_partial(
        self, station: Station, engine: KvPublisher
    ) -> None:
        fill(engine, 1, 2)
        source = station.follow(engine, replay=False)
        eventually(lambda: station.state(source) is PARTIAL)
        assert engine.asked_from == []

        def live_arrives() -> bool:
            engine.publish(stored([50]))
            return station.index.stats().placements > 0

        eventually(live_arrives)
        assert station.state(source) is PARTIAL

    def test_a_closed_replay_port_costs_no_time_out(self, stations: Callable[..., Station]) -> None:
        station = stations(kv_replay_timeout_s=60.0)
        with KvPublisher(replays=False) as engine:
            source = station.follow(engine)
            eventually(lambda: station.state(source) is PARTIAL)
            assert station.count("aibrix_kv_replays_total", pod=POD, rank="0", result="none") == 1

    def test_an_engine_that_does_not_answer_makes_it_partial(
        self, station: Station, engine: KvPublisher
    ) -> None:
        engine.answers = False
        source = station.follow(engine)
        eventually(lambda: station.state(source) is PARTIAL)
        assert len(engine.asked_from) == 2
        assert station.count("aibrix_kv_replays_total", pod=POD, rank="0", result="failed") == 1


class TestGaps:
    def test_a_gap_is_refilled(self, station: Station, engine: KvPublisher) -> None:
        source = station.follow(engine)
        station.reaches(source, EXACT, 0)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)
        engine.publish(stored([4], parent=3), lost=True)
        fill(engine, 5, 6)
        station.reaches(source, EXACT, 6)
        assert station.count_of("aibrix_kv_gaps_total") == 1
        assert station.cleared == []

    def test_a_removal_in_a_gap_is_not_missed(self, station: Station, engine: KvPublisher) -> None:
        source = station.follow(engine)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)
        engine.publish(removed([2]), lost=True)
        engine.publish(stored([50]))
        station.reaches(source, EXACT, 1)

    def test_a_burnt_number_clears_and_goes_on(self, station: Station, engine: KvPublisher) -> None:
        source = station.follow(engine)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)
        engine.burn()
        fill(engine, 1, 2)
        station.reaches(source, PARTIAL, 2)
        assert station.count("aibrix_kv_source_clears_total", reason="gap") == 1
        assert station.cleared == [source]

    def test_a_gap_beyond_the_buffer_clears_and_goes_on(self, station: Station) -> None:
        with KvPublisher(buffer_steps=2) as engine:
            source = station.follow(engine)
            for block in (1, 2, 3):
                station.reaches(source, EXACT, block - 1)
                fill(engine, block, block)
            station.reaches(source, EXACT, 3)
            for block in (60, 61, 62):
                engine.publish(stored([block]), lost=True)
            fill(engine, 1, 1)
            station.reaches(source, PARTIAL, 1)

    def test_a_lost_reply_is_asked_for_again(self, station: Station, engine: KvPublisher) -> None:
        fill(engine, 1, 6)
        engine.loses_replies = {3}
        source = station.follow(engine)
        station.reaches(source, EXACT, 6)
        assert engine.asked_from == [0, 3]

    def test_a_lost_tail_is_found_in_the_silence(self, stations: Callable[..., Station]) -> None:
        station = stations(kv_idle_probe_s=0.2)
        with KvPublisher() as engine:
            source = station.follow(engine)
            fill(engine, 1, 3)
            station.reaches(source, EXACT, 3)
            engine.publish(removed([3]), lost=True)
            station.reaches(source, EXACT, 2)

    def test_a_payload_that_is_none_clears_and_goes_on(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)
        engine.publish_raw([b"", (3).to_bytes(8, "big"), b"\xc1"])
        station.reaches(source, PARTIAL, 0)
        assert station.count("aibrix_kv_source_clears_total", reason="lossy") == 1

    def test_a_message_that_is_no_batch_is_counted_told_once_and_harmless(
        self, station: Station, engine: KvPublisher, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = station.follow(engine)
        fill(engine, 1, 1)
        station.reaches(source, EXACT, 1)
        engine.publish_raw([b"only one frame"])
        engine.publish_raw([b"only one frame"])
        fill(engine, 2, 2)
        station.reaches(source, EXACT, 2)
        assert station.count("aibrix_kv_bad_frames_total", reason="frame_count") == 2
        assert caplog.text.count("are dropped (frame_count)") == 1

    def test_events_that_cannot_be_used_are_counted_and_told_once(
        self, station: Station, engine: KvPublisher, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = station.follow(engine)
        for number in range(1, 4):
            engine.publish(stored([number], parent=number - 1 or None), {"type": "Unheard"})
        station.reaches(source, EXACT, 3)
        assert station.count("aibrix_kv_skipped_events_total", reason="unknown_event") == 3
        assert caplog.text.count("events are skipped (unknown_event)") == 1


class TestRestarts:
    def test_a_restarted_engine_starts_over(self, station: Station, engine: KvPublisher) -> None:
        source = station.follow(engine)
        fill(engine, 1, 5)
        station.reaches(source, EXACT, 5)
        engine.restart()
        fill(engine, 1, 2)
        station.reaches(source, EXACT, 2)
        assert station.count_of("aibrix_kv_restarts_total") == 1
        assert station.count("aibrix_kv_source_clears_total", reason="restart") == 1
        assert station.new_engines == [POD]

    def test_without_a_replay_port_a_new_connection_may_be_another_engines(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine, replay=False)
        eventually(lambda: station.state(source) is PARTIAL)
        fill(engine, 1, 2)
        station.reaches(source, PARTIAL, 2)
        assert station.new_engines == []
        engine.restart()
        eventually(lambda: station.new_engines == [POD])

    def test_one_that_stays_silent_is_found_out(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        fill(engine, 1, 5)
        station.reaches(source, EXACT, 5)
        engine.restart()
        station.reaches(source, EXACT, 0)

    def test_one_that_has_passed_the_old_number_is_found_out(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        fill(engine, 1, 3)
        station.reaches(source, EXACT, 3)
        engine.restart()
        for block in range(70, 80):
            engine.publish(stored([block]), lost=True)
        engine.publish(stored([1]))
        station.reaches(source, EXACT, 1)

    def test_an_engine_that_is_away_is_lost_and_comes_back(
        self, stations: Callable[..., Station]
    ) -> None:
        station = stations(kv_lost_after_s=0.2)
        with KvPublisher() as engine:
            source = station.follow(engine)
            fill(engine, 1, 3)
            station.reaches(source, EXACT, 3)
            engine.stop()
            station.reaches(source, LOST, 0)
            assert station.cleared == [source]
            engine.start()
            fill(engine, 1, 2)
            station.reaches(source, EXACT, 2)

    def test_an_engine_never_there_is_lost(self, stations: Callable[..., Station]) -> None:
        station = stations(kv_lost_after_s=0.2)
        engine = KvPublisher()
        engine.stop()
        source = station.follow(engine)
        station.reaches(source, LOST, 0)

    def test_a_bad_endpoint_is_lost_and_harms_no_other(
        self, stations: Callable[..., Station], engine: KvPublisher
    ) -> None:
        station = stations(kv_lost_after_s=0.2, kv_subscriber_threads=1)
        bad = station.index.add_source(MODEL)
        station.subscriber.add(bad, "default/bad", Rank(0, "no endpoint", "nor this"))
        source = station.follow(engine)
        fill(engine, 1, 1)
        station.reaches(source, EXACT, 1)
        station.reaches(bad, LOST, 0)


class TestOverflow:
    def test_more_than_may_wait_loses_it_and_it_recovers(
        self, stations: Callable[..., Station]
    ) -> None:
        station = stations(
            kv_queue_bytes=300, kv_idle_probe_s=0.3, kv_replay_timeout_s=60.0, kv_lost_after_s=60.0
        )
        with KvPublisher() as engine:
            engine.publish(stored([1]))
            engine.answers = False
            source = station.follow(engine)
            eventually(lambda: engine.asked_from)

            def lost() -> bool:
                engine.publish(stored([90]))
                return station.state(source) is LOST

            eventually(lost)
            engine.answers = True
            station.reaches(source, EXACT, 1)
            assert station.count("aibrix_kv_source_clears_total", reason="overflow") >= 1


class TestManySources:
    def test_ranks_are_sources_of_their_own(self, station: Station) -> None:
        with KvPublisher() as first, KvPublisher() as second:
            sources = [station.follow(first, rank=0), station.follow(second, rank=1)]
            fill(first, 1, 3)
            fill(second, 1, 5)
            station.reaches(sources[0], EXACT, 3)
            station.reaches(sources[1], EXACT, 5)
            assert station.count("aibrix_kv_batches_total", pod=POD, rank="1") >= 5

    def test_many_on_two_threads_are_all_served(self, stations: Callable[..., Station]) -> None:
        station = stations(kv_subscriber_threads=2)
        engines = [KvPublisher() for _ in range(12)]
        try:
            for number, engine in enumerate(engines):
                fill(engine, 1, number)
            sources = [station.follow(engine, rank=n) for n, engine in enumerate(engines)]
            for number, engine in enumerate(engines):
                fill(engine, number + 1, 20)
            for source in sources:
                station.reaches(source, EXACT, 20)
        finally:
            for engine in engines:
                engine.stop()

    def test_a_slow_replay_holds_up_no_other_source(
        self, stations: Callable[..., Station], engine: KvPublisher
    ) -> None:
        station = stations(kv_subscriber_threads=1, kv_replay_timeout_s=60.0)
        with KvPublisher() as slow:
            slow.answers = False
            waiting = station.follow(slow, rank=1)
            eventually(lambda: slow.asked_from)
            source = station.follow(engine)
            fill(engine, 1, 3)
            station.reaches(source, EXACT, 3)
            assert station.state(waiting) is SourceState.SYNCING

    def test_more_replays_than_run_at_once_all_come_to_their_turn(
        self, stations: Callable[..., Station]
    ) -> None:
        station = stations(kv_subscriber_threads=1)
        with KvPublisher() as engine:
            fill(engine, 1, 2)
            sources = [station.follow(engine, rank=rank) for rank in range(20)]
            for source in sources:
                station.reaches(source, EXACT, 2)


class TestFullIndex:
    def test_a_source_of_which_blocks_were_left_out_is_partial_until_it_is_cleared(
        self,
        stations: Callable[..., Station],
        engine: KvPublisher,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        station = stations(index=PrefixIndex(max_bytes=20_000))
        source = station.follow(engine)
        station.reaches(source, EXACT, 0)
        engine.publish(stored(list(range(1, 2001))))
        eventually(lambda: station.state(source) is PARTIAL)
        held = station.depth(source, 2000)
        assert 0 < held < 2000
        engine.publish(stored([5000]))
        engine.publish(removed([held]))
        eventually(lambda: station.depth(source, 2000) == held - 1)
        assert station.state(source) is PARTIAL
        assert caplog.text.count("ok → full (AIBRIX_KV_INDEX_MAX_BYTES is reached") == 1
        engine.publish(all_cleared())
        engine.publish(stored([1, 2, 3]))
        station.reaches(source, EXACT, 3)
        assert caplog.text.count("full → ok") == 1


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


class TestLag:
    def test_the_age_of_the_last_live_batch_is_known(
        self, station: Station, engine: KvPublisher
    ) -> None:
        source = station.follow(engine)
        station.reaches(source, EXACT, 0)
        feed = station.subscriber.feed(source)
        assert feed is not None
        assert feed.lag_s is None
        fill(engine, 1, 1)
        eventually(lambda: feed.lag_s is not None)
        assert feed.lag_s is not None
        assert feed.lag_s >= 0


def test_closing_ends_all_threads_with_sources_in_every_state() -> None:
    station = Station(kv_replay_timeout_s=60.0)
    with KvPublisher() as engine, KvPublisher() as mute:
        mute.answers = False
        synced = station.follow(engine)
        station.follow(mute, rank=1)
        station.subscriber.add(
            station.index.add_source(MODEL), POD, Rank(2, f"tcp://127.0.0.1:{free_port()}")
        )
        station.reaches(synced, EXACT, 0)
        eventually(lambda: mute.asked_from)
        station.subscriber.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("kv-events-")]


def test_a_source_without_sockets_is_followed_once_others_have_freed_theirs(
    stations: Callable[..., Station], engine: KvPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_MAX_SOCKETS", 11)  # 3 of a source, 3 of its replay
    monkeypatch.setattr(line, "_OPEN_AGAIN_S", 0.05)
    station = stations(kv_subscriber_threads=1, kv_replay_timeout_s=0.1)
    fill(engine, 1, 2)
    # Replays are asked for one after another, or fail for want of sockets as well.
    first = [station.follow(engine, rank=rank, replay=False) for rank in range(3)]
    for source in first:
        station.reaches(source, PARTIAL, 0)
    late = station.follow(engine, rank=3)
    assert station.state(late) is SourceState.CONNECTING
    for source in first:
        station.remove(source)
    station.reaches(late, EXACT, 2)
