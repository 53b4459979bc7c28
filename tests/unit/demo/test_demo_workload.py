"""The workload is the same everywhere, and shares what it says it shares."""

from collections import Counter

import pytest

from aibrix_extproc.demo.workload import Conversation, Shape, at_least, build, messages


def test_the_same_seed_gives_the_same_words() -> None:
    assert build(Shape(), 7) == build(Shape(), 7)


def test_another_seed_gives_other_words() -> None:
    one, other = build(Shape(), 1), build(Shape(), 2)
    assert {c.system for c in one}.isdisjoint(c.system for c in other)


def test_the_words_are_those_of_every_earlier_run() -> None:
    first = build(Shape(), 1)[0]
    assert first.system.split()[:3] == ["digu", "foki", "cera"]


def test_the_shape_counts_its_requests() -> None:
    shape = Shape(chat_groups=2, chats_per_group=3, chat_turns=4, documents=5)
    conversations = build(shape, 1)
    assert sum(len(c.turns) for c in conversations) == shape.requests == 2 * 3 * 4 + 5 * 6


def test_groups_share_their_system_message_and_nothing_else() -> None:
    shape = Shape(chat_groups=2, chats_per_group=3, documents=1, questions_per_document=4)
    conversations = build(shape, 1)
    assert sorted(Counter(c.system for c in conversations).values()) == [3, 3, 4]
    turns = [turn for c in conversations for turn in c.turns]
    assert len(set(turns)) == len(turns)


def test_chats_and_documents_are_mixed() -> None:
    kinds = [len(c.turns) for c in build(Shape(), 1)]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)


@pytest.mark.parametrize("requests", [1, 26, 27, 156, 1000])
def test_at_least_gives_no_fewer_requests_and_no_needless_group(requests: int) -> None:
    one_group = Shape(chat_groups=1, documents=1).requests
    found = at_least(requests).requests
    assert requests <= found < requests + one_group


def test_a_turn_carries_every_turn_and_answer_before_it() -> None:
    conversation = Conversation("be brief", ("one", "two", "three"), 8)
    assert messages(conversation, []) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
    ]
    assert [m["content"] for m in messages(conversation, ["1", "2"])] == [
        *("be brief", "one", "1", "two", "2", "three"),
    ]
