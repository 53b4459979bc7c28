"""What one replay makes of its replies, and of silence."""

from aibrix_extproc.kvevents.replay import AskAgain, Conversation, Outcome, ReplayFailed
from aibrix_extproc.kvevents.wire import ReplayBatch, ReplayEnd

TIMEOUT_S = 5.0
END = [b"", b"\xff" * 8, b""]


class Talk:
    def __init__(self, start: int) -> None:
        self.conversation = Conversation(start, TIMEOUT_S, now=0.0)
        self.conversation.reached()
        self.now = 0.0

    def reply(self, number: int) -> Outcome | None:
        return self.conversation.reply([b"", number.to_bytes(8, "big"), b"p"], self.now)

    def end(self) -> Outcome | None:
        return self.conversation.reply(END, self.now)

    def silent_for(self, seconds: float) -> Outcome | None:
        self.now += seconds
        return self.conversation.check(self.now)


def test_batches_pass_in_order_up_to_the_end() -> None:
    talk = Talk(3)
    assert [talk.reply(3), talk.reply(4), talk.end()] == [
        ReplayBatch(3, b"p"),
        ReplayBatch(4, b"p"),
        ReplayEnd(),
    ]


def test_a_replay_may_begin_later_than_asked() -> None:
    assert Talk(3).reply(9) == ReplayBatch(9, b"p")


def test_a_hole_is_asked_for_once_more_since_a_reply_may_be_lost() -> None:
    talk = Talk(0)
    talk.reply(0)
    assert talk.reply(2) == AskAgain(1)
    assert [talk.reply(1), talk.reply(2)] == [ReplayBatch(1, b"p"), ReplayBatch(2, b"p")]


def test_a_hole_that_is_there_again_is_passed_on() -> None:
    talk = Talk(0)
    talk.reply(0)
    assert talk.reply(2) == AskAgain(1)
    assert [talk.reply(2), talk.reply(3)] == [ReplayBatch(2, b"p"), ReplayBatch(3, b"p")]


def test_holes_without_end_are_not_asked_for_without_end() -> None:
    talk = Talk(0)
    again = 0
    for number in range(0, 1000, 2):
        while isinstance(talk.reply(number), AskAgain):
            again += 1
    assert 0 < again < 50


def test_silence_asks_again_for_the_rest() -> None:
    talk = Talk(0)
    talk.reply(0)
    assert talk.silent_for(4.9) is None
    assert talk.silent_for(0.2) == AskAgain(1)
    assert talk.end() == ReplayEnd()


def test_silence_twice_is_a_failure() -> None:
    talk = Talk(0)
    assert talk.silent_for(5) == AskAgain(0)
    assert isinstance(talk.silent_for(5), ReplayFailed)


def test_silence_is_counted_anew_after_each_batch() -> None:
    talk = Talk(0)
    for number in range(5):
        assert talk.reply(number) == ReplayBatch(number, b"p")
        assert talk.silent_for(5) == AskAgain(number + 1)


def test_a_port_where_nobody_listens_is_given_up_soon() -> None:
    conversation = Conversation(0, TIMEOUT_S, now=0.0)
    assert [conversation.refused(), conversation.refused()] == [None, None]
    failed = conversation.refused()
    assert failed is not None
    assert failed.port_closed


def test_a_port_that_answered_before_may_be_away_for_the_whole_time_out() -> None:
    talk = Talk(0)
    assert [talk.conversation.refused() for _ in range(10)] == [None] * 10


def test_no_connection_within_the_time_out_is_a_failure() -> None:
    failed = Conversation(0, TIMEOUT_S, now=0.0).check(5.0)
    assert isinstance(failed, ReplayFailed)
    assert not failed.port_closed
