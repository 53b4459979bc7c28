"""The state machine of a source: nothing is heard."""

import pytest

from aibrix_extproc.kvevents.effects import ClearReason
from tests.unit.kvevents.engine_model import Driver
from tests.unit.kvevents.source_rig import EXACT, LOST, PARTIAL, SYNCING, synced


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
