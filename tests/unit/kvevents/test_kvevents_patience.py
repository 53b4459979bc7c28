"""What a source does with silence and with questions that nobody answers."""

from dataclasses import replace

import pytest

from aibrix_extproc.kvevents.effects import ClearReason, Notice, SourceState
from tests.unit.kvevents.engine_model import LIMITS, Driver, batch

SYNCING, EXACT = SourceState.SYNCING, SourceState.EXACT
PARTIAL, LOST = SourceState.PARTIAL, SourceState.LOST


def synced(upto: int = 2, *, has_replay: bool = True) -> Driver:
    driver = Driver(has_replay=has_replay)
    driver.connected()
    driver.live(*range(upto + 1))
    if has_replay:
        driver.replay_put()
        driver.replayed(*range(upto + 1))
        driver.replay_ended()
    return driver


def pass_time(driver: Driver, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        driver.after(0.1)
        question = driver.sync._asking.question
        if question is not None and question.heard_at is None:
            driver.replay_put()


class TestAMuteReplayPort:
    def test_a_question_that_a_batch_waits_for_is_put_anew_after_a_second(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 0.9)
        assert driver.questions == [0, 2]
        pass_time(driver, 0.3)
        assert driver.questions == [0, 2, 2]
        driver.replayed(2, 3, 4)
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(6)))

    def test_what_may_be_wrong_is_not_held_for_three_seconds(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 2.8)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5])
        assert driver.clears == [ClearReason.GAP]
        assert Notice.REPLAY_FAILED in driver.notices

    def test_after_a_reconnect_neither(self) -> None:
        driver = synced()
        driver.disconnected()
        driver.connected()
        driver.replay_put()
        driver.live(3, process=2)
        pass_time(driver, 2.8)
        assert (driver.state, driver.held) == (PARTIAL, [batch(3, 2)])
        assert driver.clears == [ClearReason.UNPROVEN]

    def test_older_batches_are_had_as_soon_as_it_answers(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 2.8)
        driver.live(6)
        pass_time(driver, 1.1)
        assert driver.questions[-1] == 0
        assert driver.state is PARTIAL, "it is believed until the first answer"
        driver.replayed(0, 1, 2, 3, 4)
        assert (driver.state, driver.sync.usable) == (SYNCING, False)
        driver.replayed(5, 6)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(7)))
        assert driver.clears[-1] is ClearReason.REFILL

    def test_an_answer_with_nothing_older_clears_nothing_and_ends_the_asking(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 2.8)
        driver.live(6)
        pass_time(driver, 1.1)
        driver.replayed(5, 6)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (PARTIAL, [5, 6])
        asked = len(driver.questions)
        driver.live(7)
        pass_time(driver, 5)
        assert len(driver.questions) == asked

    def test_an_older_batch_of_another_engine_is_not_believed(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 2.8)
        driver.live(6)
        pass_time(driver, 1.1)
        driver.replayed(0, 1, process=2)
        assert not driver.sync.usable
        driver.replay_ended()
        assert (driver.held, driver.reconnects) == ([], 1)

    def test_what_is_rebuilt_half_way_is_cleared_since_nothing_shows_whose_it_is(self) -> None:
        driver = synced()
        driver.live(5)
        pass_time(driver, 2.8)
        driver.live(6)
        pass_time(driver, 1.1)
        driver.replayed(0, 1, process=2)
        driver.replay_failed()
        assert (driver.state, driver.held) == (PARTIAL, [])

    def test_a_question_that_waits_for_its_turn_is_no_reason_to_clear_but_to_doubt(self) -> None:
        driver = synced()
        driver.live(5)
        for _ in range(30):
            driver.after(0.1)
        assert (driver.held_numbers, driver.sync.usable) == ([0, 1, 2], False)
        driver.replay_put()
        driver.replayed(2, 3, 4, 5)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(6)))


class TestAClosedReplayPort:
    def test_it_is_not_asked_again_until_it_opens(self) -> None:
        driver = Driver()
        driver.connected()
        driver.replay_failed(port_closed=True)
        driver.live(4)
        pass_time(driver, 30)
        driver.live(6)
        assert (driver.questions, driver.held_numbers) == ([0], [6])
        driver.replay_port_open()
        assert driver.questions == [0, 0]
        driver.replayed(*range(7))
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, list(range(7)))

    def test_exact_ends_where_nobody_can_be_asked_for_a_lost_tail(self) -> None:
        driver = Driver()
        driver.connected()
        driver.live(0)
        driver.replay_failed(port_closed=True)
        assert driver.state is EXACT
        pass_time(driver, 2.1)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [0])


class TestSilence:
    def test_a_silent_source_is_stale_and_not_believed(self) -> None:
        driver = synced()
        pass_time(driver, 119)
        assert (driver.sync.stale, driver.sync.usable) == (False, True)
        pass_time(driver, 2)
        assert (driver.sync.stale, driver.sync.usable, driver.stale) == (True, False, True)
        assert driver.held_numbers == [0, 1, 2]
        assert driver.state is EXACT

    @pytest.mark.parametrize("sign", ["a batch", "an answer"])
    def test_a_sign_of_life_ends_it(self, sign: str) -> None:
        driver = synced()
        pass_time(driver, 121)
        if sign == "a batch":
            driver.live(3)
        else:
            driver.replayed(2)
        assert (driver.sync.stale, driver.sync.usable, driver.stale) == (False, True, False)

    def test_past_a_second_limit_it_is_lost_though_its_connection_stands(self) -> None:
        driver = synced()
        pass_time(driver, 179)
        assert driver.state is EXACT
        pass_time(driver, 2)
        assert (driver.state, driver.held, driver.clears) == (LOST, [], [ClearReason.LOST])

    def test_a_sign_of_life_brings_it_back(self) -> None:
        driver = synced()
        pass_time(driver, 181)
        driver.live(3)
        assert (driver.state, driver.questions[-1]) == (SYNCING, 0)
        driver.replayed(0, 1, 2)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3])

    def test_without_a_replay_port_a_stale_source_holds_nothing(self) -> None:
        driver = synced(has_replay=False)
        pass_time(driver, 2.1)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [0, 1, 2])
        pass_time(driver, 119)
        assert (driver.state, driver.held) == (PARTIAL, [])
        assert driver.clears == [ClearReason.STALE]
        pass_time(driver, 60)
        assert driver.state is LOST
        driver.live(3)
        assert (driver.state, driver.held_numbers) == (PARTIAL, [3])

    def test_a_short_limit_makes_the_questions_come_sooner(self) -> None:
        driver = Driver(limits=replace(LIMITS, stale_after_s=4.0))
        driver.connected()
        driver.live(0)
        driver.replay_put()
        driver.replay_ended()
        asked = len(driver.questions)
        pass_time(driver, 2.1)
        assert len(driver.questions) == asked + 1

    def test_a_clock_that_jumps_back_delays_nothing_for_long(self) -> None:
        driver = synced()
        driver.now -= 3600
        driver.after(0)
        driver.live(3, 4)
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3, 4])


class TestABatchThatCannotBeRead:
    def test_the_engine_is_asked_whether_it_sent_it_so(self) -> None:
        driver = synced()
        driver.live(3, kind="unreadable")
        driver.after(0.1)
        assert driver.questions[-1] == 3
        driver.replayed(3, kind="unreadable")
        driver.replay_ended()
        assert (driver.state, driver.clears) == (PARTIAL, [ClearReason.LOSSY])
        asked = len(driver.questions)
        driver.live(4, kind="unreadable")
        driver.after(0.1)
        assert len(driver.questions) == asked, "it is usual with this engine"

    def test_one_spoilt_on_the_way_is_had_again(self) -> None:
        driver = synced()
        driver.live(3, kind="unreadable")
        driver.after(0.1)
        driver.replayed(3)
        assert (driver.held, driver.reconnects) == ([], 1)
        driver.connected()
        driver.replayed(0, 1, 2, 3)
        driver.replay_ended()
        assert (driver.state, driver.held_numbers) == (EXACT, [0, 1, 2, 3])


def test_what_cannot_be_right_is_emptied_and_followed_on() -> None:
    driver = synced()
    driver.discard(ClearReason.INFLATED)
    assert (driver.state, driver.held, driver.clears) == (PARTIAL, [], [ClearReason.INFLATED])
    driver.live(3)
    assert (driver.state, driver.held_numbers) == (PARTIAL, [3])


def test_a_new_connection_with_a_lower_number_is_another_engine_at_once() -> None:
    driver = synced(upto=9)
    driver.disconnected()
    driver.connected()
    driver.live(1, process=2)
    assert (driver.held, driver.clears) == ([], [ClearReason.RESTART])
    assert driver.questions[-1] == 0
