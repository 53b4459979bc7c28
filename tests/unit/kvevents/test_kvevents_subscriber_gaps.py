"""Event sync over real ZMQ: batches that are missing, engines that restart, no room."""

import logging
from collections.abc import Callable

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import PrefixIndex
from tests.kv_publisher import KvPublisher, all_cleared, removed, stored
from tests.support import eventually
from tests.unit.kvevents.subscriber_rig import EXACT, LOST, MODEL, PARTIAL, POD, Station, fill


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
