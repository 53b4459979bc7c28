"""Event sync over real ZMQ, with the real index: what an engine does, and what we then know."""

import threading
from collections.abc import Callable

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.kvevents import line, sockets
from aibrix_extproc.kvevents.effects import SourceState
from tests.kv_publisher import KvPublisher, all_cleared, stored
from tests.support import eventually, free_port
from tests.unit.kvevents.subscriber_rig import EXACT, MODEL, PARTIAL, POD, Station, fill


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


def test_what_may_never_happen_to_a_source_is_counted_from_0(
    station: Station, engine: KvPublisher
) -> None:
    """A series that begins at 1 has not risen, for Prometheus."""
    source = station.follow(engine)

    def counted() -> set[float | None]:
        names = ("gaps", "restarts", "disconnects", "handshake_failures")
        value = station.metrics.registry.get_sample_value
        return {value(f"aibrix_kv_{name}_total", {"pod": POD, "rank": "0"}) for name in names}

    assert counted() == {0.0}
    station.remove(source)
    assert counted() == {None}


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
