"""The state machine of a source: batches that are missing, engines that restart."""

from aibrix_extproc.kvevents.effects import ClearReason, Notice
from tests.unit.kvevents.engine_model import Driver, batch
from tests.unit.kvevents.source_rig import EXACT, PARTIAL, SYNCING, synced


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
