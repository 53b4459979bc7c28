"""The state machine of a source, sentence by sentence."""

import pytest

from aibrix_extproc.kvevents.effects import Apply, ClearReason, Notice, SourceState
from aibrix_extproc.kvevents.source import SyncLimits
from aibrix_extproc.kvevents.waiting import OVERHEAD_BYTES
from tests.unit.kvevents.engine_model import LIMITS, Driver, batch

CONNECTING, SYNCING = SourceState.CONNECTING, SourceState.SYNCING
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


def synced(*, upto: int = 2, has_replay: bool = True, limits: SyncLimits = LIMITS) -> Driver:
    """A source that has followed its engine from number 0 to `upto`."""
    driver = Driver(has_replay=has_replay, limits=limits)
    driver.connected()
    driver.live(*range(upto + 1))
    if has_replay:
        driver.replayed(*range(upto + 1))
        driver.replay_ended()
    assert driver.state is EXACT
    assert driver.held_numbers == list(range(upto + 1))
    return driver


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


class TestGaps:
    def test_a_gap_asks_for_what_follows_the_last_batch_applied(self) -> None:
        driver = synced()
        driver.live(5)
        assert (driver.state, driver.questions) == (SYNCING, [0, 2])
        assert driver.sync.usable, "what is held was right a moment ago"
        assert driver.held_numbers == [0, 1, 2]

    def test_a_refilled_gap_leaves_it_exact(self) -> None:
        driver = synced()
        driver.live(5)
        driver.replayed(2, 3, 4, 5)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4, 5])
        assert driver.clears == []
        assert Notice.GAP in driver.notices

    def test_it_need_not_hold_the_last_batch_any_more_to_refill(self) -> None:
        driver = synced()
        driver.live(5)
        driver.replayed(3, 4)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4, 5])

    def test_a_burnt_number_clears_it_and_it_goes_on(self) -> None:
        driver = synced()
        driver.live(4)
        driver.replayed(2, 4)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [4])
        assert driver.clears == [ClearReason.GAP]
        driver.live(5)
        assert driver.held_numbers == [4, 5]

    def test_a_gap_that_the_engine_no_longer_holds_clears_it(self) -> None:
        driver = synced()
        driver.live(9)
        driver.replayed(7, 8, 9)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [7, 8, 9])

    def test_an_unanswered_question_clears_it(self) -> None:
        driver = synced()
        driver.live(5)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5])

    def test_what_waits_is_not_believed_either_where_the_replay_begins_behind_it(self) -> None:
        driver = synced()
        driver.live(5, 6)
        driver.replayed(9)
        driver.replay_ended()
        assert driver.held_numbers == [9], "7 and 8 are lost, so 5 and 6 may be stale"
        assert driver.state is PARTIAL
        driver.live(10)
        assert driver.held_numbers == [9, 10]

    def test_a_second_gap_during_the_replay_is_asked_for_after_it(self) -> None:
        driver = synced()
        driver.live(4)
        driver.live(6)
        driver.replayed(2, 3, 4)
        driver.replay_ended()
        assert (driver.state, driver.questions) == (SYNCING, [0, 2, 4])
        driver.replayed(4, 5, 6)
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(7)))

    def test_while_it_rebuilds_after_a_clear_it_is_not_believed(self) -> None:
        driver = synced()
        driver.live(9)
        driver.replayed(5, 6)
        assert (driver.state, driver.sync.usable) == (SYNCING, False)

    def test_a_repeated_live_batch_is_dropped(self) -> None:
        driver = synced()
        driver.live(2)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2])


class TestRestart:
    def test_a_number_that_goes_down_starts_over(self) -> None:
        driver = synced()
        driver.live(1, process=2)
        assert (driver.state, driver.questions) == (SYNCING, [0, 0])
        assert (driver.held, driver.clears) == ([], [ClearReason.RESTART])
        assert not driver.sync.usable
        assert Notice.RESTART in driver.notices
        driver.replayed(0, 1, process=2)
        driver.replay_ended()
        assert (driver.state, driver.held) == (EXACT, [batch(0, 2), batch(1, 2)])

    def test_one_that_begins_at_0_is_exact_at_once(self) -> None:
        driver = synced()
        driver.live(0, 1, process=2)
        assert (driver.state, driver.held) == (EXACT, [batch(0, 2), batch(1, 2)])
        assert driver.questions == [0]

    def test_the_same_number_from_another_process_is_a_restart(self) -> None:
        driver = synced(upto=0)
        driver.live(0, process=2)
        assert (driver.state, driver.held) == (EXACT, [batch(0, 2)])

    def test_in_the_middle_of_a_replay_what_waited_is_dropped(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(9)
        driver.replayed(0, 1)
        assert driver.question is not None
        ask = driver.question.ask
        driver.live(0, process=2)
        driver.answer(ask, batch(2))
        driver.live(1, process=2)
        assert (driver.state, driver.held) == (EXACT, [batch(0, 2), batch(1, 2)])

    def test_a_lost_connection_in_the_middle_of_a_replay_ends_the_replay(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(9)
        driver.replayed(0, 1)
        assert driver.question is not None
        ask = driver.question.ask
        driver.disconnected()
        assert driver.question is None
        driver.answer(ask, batch(2))
        assert (driver.state, driver.held_numbers) == (SYNCING, [0, 1])
        driver.connected()
        driver.replayed(1, 2, process=2)
        assert driver.held == []
        assert driver.questions == [0, 1, 0]

    def test_an_engine_that_passed_the_old_number_while_we_were_away_is_found_out(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.connected()
        driver.live(3, process=2)
        assert driver.held_numbers == [0, 1, 2], "3 must wait until it is known whose it is"
        driver.replayed(2, process=2)
        driver.replayed(0, 1, 2, 3, process=2)
        driver.replay_ended()
        assert driver.held == [batch(n, 2) for n in range(4)]
        assert (driver.state, driver.clears) == (EXACT, [ClearReason.RESTART])

    def test_a_silent_new_engine_is_found_out_by_its_empty_answer(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.connected()
        driver.replay_ended()
        assert (driver.held, driver.clears) == ([], [ClearReason.RESTART])
        driver.replay_ended()
        assert driver.state is EXACT

    def test_a_replay_port_that_contradicts_a_standing_connection_makes_it_connect_anew(
        self,
    ) -> None:
        driver = synced()
        driver.live(5)
        driver.replayed(2, process=2)
        assert (driver.reconnects, driver.held) == (1, [])
        assert driver.sync.pending_bytes == 0, "batch 5 is of the engine before"
        driver.after(1)
        assert driver.state is SYNCING
        driver.connected()
        driver.replayed(0, 1, 2, process=2)
        driver.replay_ended()
        assert (driver.state, driver.held) == (EXACT, [batch(n, 2) for n in range(3)])


class TestReconnection:
    def test_the_same_engine_keeps_what_it_had(self) -> None:
        driver = synced()
        driver.disconnected()
        assert driver.state is EXACT
        driver.connected()
        assert (driver.state, driver.sync.usable, driver.questions) == (SYNCING, True, [0, 2])
        driver.live(5)
        driver.replayed(2, 3, 4, 5)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(6)))
        assert driver.clears == []

    def test_it_is_cleared_where_the_engine_cannot_show_that_it_is_the_same(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.connected()
        driver.replayed(3, 4)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [3, 4])
        assert driver.clears == [ClearReason.UNPROVEN]

    def test_it_is_cleared_where_no_answer_comes(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.connected()
        driver.live(3)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [3])
        assert driver.clears == [ClearReason.UNPROVEN]


class TestContactLost:
    def test_after_a_while_it_is_lost_and_cleared(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.after(59)
        assert (driver.state, driver.sync.usable) == (EXACT, True)
        driver.after(1)
        assert (driver.state, driver.held, driver.sync.usable) == (LOST, [], False)
        assert driver.clears == [ClearReason.LOST]

    def test_it_comes_back_on_contact(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.after(60)
        driver.connected()
        assert (driver.state, driver.questions) == (SYNCING, [0, 0])
        driver.replayed(0, 1, 2, 3)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3])

    def test_one_never_reached_is_lost_too_and_counts_as_past_its_first_sync(self) -> None:
        driver = Driver()
        driver.after(60)
        assert (driver.state, driver.sync.first_sync_done) == (LOST, True)

    def test_a_silent_engine_that_answers_is_contact(self) -> None:
        driver = synced()
        for _ in range(100):
            asked = len(driver.questions)
            driver.after(5)
            if len(driver.questions) > asked:
                driver.replayed(2)
                driver.replay_ended()
        assert (driver.state, driver.sync.stale) == (EXACT, False)


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


class TestSilence:
    def test_a_silent_source_is_asked_once_an_interval(self) -> None:
        driver = synced()
        driver.after(9)
        assert driver.questions == [0]
        driver.after(1)
        assert driver.questions == [0, 2]
        assert driver.state is EXACT, "it is believed while it is asked"
        driver.replayed(2)
        driver.replay_ended()
        driver.after(9)
        assert len(driver.questions) == 2
        driver.after(1)
        assert len(driver.questions) == 3

    def test_a_connection_that_brought_nothing_yet_is_soon_asked_again_once(self) -> None:
        """A batch between the first answer and the engine's note of the subscription is lost."""
        driver = Driver()
        driver.connected()
        driver.replayed(0)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0])
        driver.after(1)
        assert driver.questions == [0, 0]
        driver.replayed(0, 1)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1])
        driver.after(9)
        assert len(driver.questions) == 2
        driver.after(1)
        assert len(driver.questions) == 3

    def test_a_connection_that_brought_a_batch_is_not_asked_again_so_soon(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replayed(0)
        driver.replay_ended()
        driver.live(1)
        driver.after(5)
        assert driver.questions == [0]

    def test_one_that_speaks_is_not_asked(self) -> None:
        driver = synced()
        for number in range(3, 20):
            driver.after(9)
            driver.live(number)
        assert driver.questions == [0]

    def test_a_lost_tail_is_found(self) -> None:
        driver = synced()
        driver.after(10)
        driver.replayed(2, 3, 4)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4])

    def test_live_batches_go_on_while_it_is_asked(self) -> None:
        driver = synced()
        driver.after(10)
        driver.live(3)
        driver.replayed(2, 3)
        driver.live(4)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4])

    def test_a_gap_while_it_is_asked_waits_for_that_answer_and_then_asks_again(self) -> None:
        driver = synced()
        driver.after(10)
        driver.live(5)
        assert (driver.state, driver.questions) == (SYNCING, [0, 2])
        driver.replayed(2)
        driver.replay_ended()
        assert (driver.state, driver.questions) == (SYNCING, [0, 2, 2])
        driver.replayed(2, 3, 4, 5)
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(6)))

    def test_no_answer_says_nothing(self) -> None:
        driver = synced()
        driver.after(10)
        driver.replay_failed()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2])

    @pytest.mark.parametrize("answers", [[], [2]])
    def test_another_engine_is_found_out(self, answers: list[int]) -> None:
        driver = synced()
        driver.after(10)
        driver.replayed(*answers, process=2)
        if not answers:
            driver.replay_ended()
        assert (driver.held, driver.reconnects) == ([], 1)

    def test_an_engine_without_a_buffer_is_asked_no_more(self) -> None:
        driver = synced()
        driver.after(10)
        driver.replay_ended()
        driver.connected()
        driver.replay_ended()
        driver.live(4)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [4])
        asked = len(driver.questions)
        driver.after(100)
        driver.live(6)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [6])
        assert len(driver.questions) == asked
