"""The bodies of a session's requests, counted by the fake engine's own tokenizer."""

import json
from typing import Any

import pytest

from aibrix_extproc.fakes.tokenizer import ChatPrompt, WordTokenizer
from aibrix_extproc.loadtest.talk import Ask, Style, Talk
from aibrix_extproc.workloads.generated import WORKLOADS, Shape, multi_turn
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

SHAPE = Shape(sessions=3, groups=1, prefix_tokens=120, turn_tokens=40, output_tokens=12, turns=3)
TOKENIZER = WordTokenizer()


def body(ask: Ask) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask.body)
    return found


def ids(ask: Ask) -> list[int]:
    return TOKENIZER.encode_chat(ChatPrompt(body(ask)["messages"]))


def answered(ask: Ask, tokens: int) -> str:
    """What a fake engine says to this."""
    said = TOKENIZER.answer(ids(ask))
    return TOKENIZER.decode([next(said) for _ in range(tokens)])


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_prompt_has_exactly_the_tokens_that_the_turn_wants(name: str) -> None:
    for session in WORKLOADS[name](SHAPE, 5):
        talk = Talk(session, Style("tiny"))
        for turn in session.turns:
            ask = talk.ask()
            assert len(ids(ask)) == turn.prompt_tokens
            assert body(ask)["max_tokens"] == turn.answer.tokens
            talk.heard(answered(ask, turn.answer.tokens))


def test_a_later_prompt_begins_with_all_that_was_said_the_real_answers_included() -> None:
    (session,) = multi_turn(Shape(sessions=1, turns=2, prefix_tokens=60, turn_tokens=30), 1)
    talk = Talk(session, Style("tiny"))
    first = talk.ask()
    talk.heard('so "it" was')
    second = talk.ask()
    assert ids(second)[: len(ids(first))] == ids(first)
    roles = [message["role"] for message in body(second)["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert body(second)["messages"][2]["content"] == 'so "it" was'


def test_a_failed_turn_leaves_an_empty_answer() -> None:
    (session,) = multi_turn(Shape(sessions=1, turns=2), 1)
    talk = Talk(session, Style("tiny"))
    talk.ask()
    talk.heard("")
    assert body(talk.ask())["messages"][2] == {"role": "assistant", "content": ""}


def test_the_ids_of_a_trace_are_one_message_and_shared_as_far_as_they_are_equal() -> None:
    def asked(*names: str) -> Ask:
        pieces = tuple(Piece(name, 512) for name in names)
        return Talk(Session(0.0, (Turn(pieces, Piece("a", 1)),)), Style("tiny")).ask()

    long, short = ids(asked("0", "1", "2")), ids(asked("0", "1", "9"))
    assert len(long) == 3 * 512
    same = next(
        place for place, pair in enumerate(zip(long, short, strict=True)) if len({*pair}) > 1
    )
    assert 2 * 512 <= same < 2 * 512 + 16


def test_other_salts_share_nothing_but_the_template() -> None:
    session = multi_turn(SHAPE, 1)[0]
    one, other = (ids(Talk(session, Style("tiny", salt)).ask()) for salt in ("1", "2"))
    assert one[:5] == other[:5]
    assert one[5:21] != other[5:21]


def test_a_turn_shorter_than_the_template_still_has_a_word() -> None:
    session = Session(0.0, (Turn((Piece("p", 2),), Piece("a", 1)),))
    assert body(Talk(session, Style("tiny")).ask())["messages"][0]["content"].isalpha()


def test_what_was_recorded_is_sent_as_it_is() -> None:
    def asked(recorded: dict[str, Any]) -> Ask:
        turn = Turn((), Piece("a", 9), recorded=recorded)
        return Talk(Session(0.0, (turn,)), Style("tiny", ignore_eos=True)).ask()

    chat = asked({"messages": [{"role": "user", "content": "é"}], "tools": []})
    assert chat.path == "/v1/chat/completions"
    assert body(chat) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "é"}],
        "tools": [],
        "max_tokens": 9,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    completion = asked({"prompt": [1, 2]})
    assert (completion.path, body(completion)["prompt"]) == ("/v1/completions", [1, 2])
