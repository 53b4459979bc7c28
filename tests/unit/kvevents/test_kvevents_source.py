"""The state machine of a source, sentence by sentence."""

from aibrix_extproc.kvevents.effects import Apply, ClearReason, Notice
from aibrix_extproc.kvevents.source import SyncLimits
from aibrix_extproc.kvevents.waiting import OVERHEAD_BYTES
from tests.unit.kvevents.engine_model import Driver, batch
from tests.unit.kvevents.source_rig import CONNECTING, EXACT, LOST, PARTIAL, SYNCING, synced


class TestFirstConnection:
    def test_nothing_is_believed_before_contact(self) -> None:
        driver = Driver()
        assert (driver.state, driver.sync.usable, driver.sync.sequence) == (CONNECTING, False, None)

    def test_contact_asks_for_a_replay_from_0(self) -> None:
        driver = Driver()
        driver.connected()
        assert (driver.state, driver.questions) == (SYNCING, [0])
        assert not driver.sync.usable
        assert not driver.sync.first_sync_done

    def test_a_replay_that_began_at_0_makes_it_exact(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replayed(0, 1, 2)
        assert driver.state is SYNCING
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2])
        assert driver.sync.usable
        assert driver.notices == [Notice.REPLAY_COMPLETE]

    def test_its_number_is_that_of_the_last_batch_applied_and_not_of_one_under_way(self) -> None:
        driver = synced()
        [apply] = driver.sync.live(3, batch(3), driver.now)
        assert isinstance(apply, Apply)
        assert driver.sync.sequence == 2
        driver.sync.applied(cleared=False, loss=None, now=driver.now)
        assert driver.sync.sequence == 3

    def test_a_replay_that_began_later_makes_it_partial(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replayed(7, 8)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [7, 8])
        assert driver.notices == [Notice.REPLAY_PARTIAL]

    def test_an_engine_that_has_published_nothing_is_exact_and_empty(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replay_ended()
        assert (driver.state, driver.held) == (EXACT, [])
        driver.live(0)
        assert (driver.state, driver.held_numbers) == (EXACT, [0])

    def test_live_batches_wait_for_the_replay_and_come_after_it(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(3, 4)
        assert driver.held == []
        assert driver.sync.pending_bytes == len(batch(3)) + len(batch(4)) + 2 * OVERHEAD_BYTES
        driver.replayed(0, 1, 2)
        assert driver.held_numbers == [0, 1, 2, 3, 4]
        assert driver.sync.pending_bytes == 0

    def test_a_batch_both_live_and_replayed_is_applied_once(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(2, 3)
        driver.replayed(0, 1, 2, 3, 4)
        driver.live(4, 5)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4, 5])

    def test_live_batches_far_ahead_of_the_replay_join_it_in_order(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(50)
        driver.replayed(*range(40))
        driver.live(51)
        driver.replayed(*range(40, 60))
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(60)))

    def test_number_0_first_means_that_nothing_was_missed(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(0)
        assert (driver.state, driver.held_numbers) == (EXACT, [0])
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (EXACT, [0])

    def test_data_is_contact_where_nobody_said_connected(self) -> None:
        driver = Driver()
        driver.live(3)
        assert (driver.state, driver.questions) == (SYNCING, [0])

    def test_a_batch_published_after_the_answer_and_lost_is_asked_for_again(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replayed(0, 1)
        driver.live(3)
        driver.replay_ended()
        assert (driver.state, driver.questions) == (SYNCING, [0, 1])
        driver.replayed(1, 2, 3)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3])

    def test_a_replay_that_fails_leaves_what_comes_next(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(5, 6)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5, 6])
        assert driver.notices == [Notice.REPLAY_FAILED]
        driver.live(7)
        assert driver.held_numbers == [5, 6, 7]

    def test_a_replay_that_fails_half_way_is_thrown_away(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(9)
        driver.replayed(0, 1, 2)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [9])
        assert driver.clears == [ClearReason.GAP]

    def test_answers_after_the_end_are_ignored(self) -> None:
        driver = Driver()
        driver.connected()
        assert driver.question is not None
        ask = driver.question.ask
        driver.replay_ended()
        driver.answer(ask, batch(4))
        assert driver.held == []


class TestNoReplayPort:
    def test_it_is_partial_at_once(self) -> None:
        driver = Driver(has_replay=False)
        driver.connected()
        assert (driver.state, driver.questions) == (PARTIAL, [])
        assert driver.notices == [Notice.NO_REPLAY_PORT]
        driver.live(8, 9)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [8, 9])

    def test_it_is_exact_where_it_was_there_from_the_start(self) -> None:
        driver = Driver(has_replay=False)
        driver.connected()
        driver.live(0, 1)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1])

    def test_a_gap_clears_it(self) -> None:
        driver = synced(has_replay=False)
        driver.live(5)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5])
        assert driver.clears == [ClearReason.GAP]
        assert Notice.GAP in driver.notices

    def test_a_new_connection_clears_it_since_nothing_shows_that_it_is_the_same_engine(
        self,
    ) -> None:
        driver = synced(has_replay=False)
        driver.disconnected()
        driver.connected()
        driver.live(3, process=2)
        assert (driver.state, driver.held) == (PARTIAL, [batch(3, 2)])
        assert driver.clears == [ClearReason.UNPROVEN]

    def test_a_closed_replay_port_is_like_none(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(4)
        driver.replay_failed(port_closed=True)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [4])
        assert driver.notices == [Notice.NO_REPLAY_PORT]


class TestOverflow:
    LIMITS = SyncLimits(
        queue_bytes=1_100, idle_probe_s=10.0, stale_after_s=120.0, lost_after_s=60.0
    )

    def overflow(self, driver: Driver, first: int) -> None:
        driver.live(*range(first, first + 6))
        assert (driver.state, driver.held) == (LOST, [])
        assert driver.sync.pending_bytes == 0

    def test_too_many_waiting_bytes_lose_and_clear_it(self) -> None:
        driver = synced(limits=self.LIMITS)
        self.overflow(driver, 5)
        assert driver.clears == [ClearReason.OVERFLOW]
        assert not driver.sync.usable
        assert driver.question is None, "the replay is given up"

    def test_it_recovers_by_itself(self) -> None:
        driver = synced(limits=self.LIMITS)
        self.overflow(driver, 5)
        driver.live(11)
        driver.after(0.9)
        assert driver.state is LOST
        driver.after(0.1)
        assert (driver.state, driver.questions[-1]) == (SYNCING, 0)
        driver.live(12)
        driver.replayed(*range(13))
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(13)))

    def test_after_a_second_one_in_a_row_it_goes_on_without_a_replay(self) -> None:
        driver = synced(limits=self.LIMITS)
        self.overflow(driver, 5)
        driver.after(10)
        self.overflow(driver, 20)
        driver.after(10)
        asked = len(driver.questions)
        driver.live(30, 31)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [30, 31])
        assert len(driver.questions) == asked

    def test_one_batch_larger_than_the_bound_is_applied_where_none_waits(self) -> None:
        limits = SyncLimits(
            queue_bytes=1, idle_probe_s=10.0, stale_after_s=120.0, lost_after_s=60.0
        )
        driver = Driver(limits=limits)
        driver.connected()
        driver.replay_ended()
        driver.live(0, 1)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1])


class TestBatches:
    def test_all_blocks_cleared_makes_a_partial_source_exact(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replayed(7)
        driver.replay_ended()
        assert driver.state is PARTIAL
        driver.live(8, kind="clear")
        assert driver.state is EXACT
        driver.live(9)
        assert (driver.state, driver.held_numbers) == (EXACT, [7, 8, 9])

    def test_a_batch_that_lost_something_clears_the_source(self) -> None:
        driver = synced()
        driver.live(3, kind="unreadable")
        assert (driver.state, driver.held) == (PARTIAL, [])
        assert driver.clears == [ClearReason.LOSSY]
        driver.live(4)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [4])

    def test_a_lossy_batch_that_waited_clears_before_the_ones_behind_it(self) -> None:
        driver = synced()
        driver.live(4, kind="unreadable")
        driver.live(5)
        driver.replayed(2, 3)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5])

    def test_a_clear_behind_a_hole_that_stays_makes_it_exact(self) -> None:
        driver = synced()
        driver.live(9, kind="clear")
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (EXACT, [9])

    def test_a_clear_before_a_hole_that_stays_does_not(self) -> None:
        driver = synced()
        driver.live(4, kind="clear")
        driver.live(6)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [6])

    def test_a_failure_of_the_driver_starts_over(self) -> None:
        driver = synced()
        driver.failed()
        assert (driver.held, driver.clears) == ([], [ClearReason.ERROR])
        assert (driver.state, driver.sync.usable, driver.reconnects) == (SYNCING, False, 1)
        driver.connected()
        assert driver.questions == [0, 0]
