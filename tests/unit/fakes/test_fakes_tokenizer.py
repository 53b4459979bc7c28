"""The tokenizer and the chat template."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.fakes.tokenizer import (
    BOS,
    END_OF_TURN,
    BadPrompt,
    ChatPrompt,
    WordTokenizer,
)

TOKENIZER = WordTokenizer()
USER = {"role": "user", "content": "Where is the cache of this engine?"}


def chat(*messages: dict[str, object], **options: object) -> list[int]:
    return TOKENIZER.encode_chat(ChatPrompt(messages, **options))  # type: ignore[arg-type]


def answer(prompt: list[int], length: int) -> tuple[list[int], str]:
    ids = list(islice(TOKENIZER.answer(prompt), length))
    return ids, TOKENIZER.decode(ids)


@given(st.text())
def test_any_text_has_ids_and_every_engine_the_same(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert WordTokenizer().encode(text) == ids
    assert ids[0] == BOS
    assert all(END_OF_TURN < token < 128_256 for token in ids[1:])
    assert TOKENIZER.encode(text, add_special_tokens=False) == ids[1:]


def test_a_lone_surrogate_has_an_id_too() -> None:
    assert len(TOKENIZER.encode("\ud800", add_special_tokens=False)) == 1


@given(st.text(), st.text(), st.text())
def test_texts_that_begin_alike_have_tokens_that_begin_alike(
    common: str, one: str, other: str
) -> None:
    first = TOKENIZER.encode(f"{common}\n{one}")
    second = TOKENIZER.encode(f"{common}\n{other}")
    shared = TOKENIZER.encode(f"{common}\n")
    words = max(0, len(shared) - 4)
    assert first[:words] == second[:words] == shared[:words]


def test_a_token_is_about_a_word_or_six_letters() -> None:
    text = "The conditions of this licence say what you may do with the software. " * 20
    assert len(text) / 8 < len(TOKENIZER.encode(text)) < len(text) / 3


def test_a_long_text_that_comes_again_has_the_same_ids_however_many_came_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aibrix_extproc.fakes.tokenizer._CACHED_IDS", 1500)
    tokenizer = WordTokenizer()
    texts = [f"{n} " + "a long prompt of words " * 100 for n in range(4)]
    first = [tokenizer.encode(text) for text in texts]
    first[3].append(0)  # what a caller does to its list is its own affair
    assert [tokenizer.encode(text) for text in texts] == [*first[:3], first[3][:-1]]
    assert first[0] == WordTokenizer().encode(texts[0])
    assert tokenizer._long_ids == sum(map(len, tokenizer._long.values())) <= 1500


@given(st.lists(st.integers(16, 128_000), max_size=80), st.integers(1, 60))
def test_an_answer_tokenizes_to_the_ids_that_it_was_generated_as(
    prompt: list[int], length: int
) -> None:
    ids, text = answer(prompt, length)
    assert TOKENIZER.encode(text, add_special_tokens=False) == ids
    assert text == text.strip()


def test_prompts_get_answers_of_their_own() -> None:
    assert answer([1, 2, 3], 20) == answer([1, 2, 3], 20)
    assert answer([1, 2, 3], 20) != answer([1, 2, 4], 20)


def test_the_next_turn_begins_with_the_last_turn_and_its_answer() -> None:
    prompt = chat(USER)
    ids, text = answer(prompt, 30)
    following = chat(USER, {"role": "assistant", "content": text}, USER)
    assert following[: len(prompt) + 31] == [*prompt, *ids, END_OF_TURN]


def test_a_shared_system_prompt_is_a_shared_prefix() -> None:
    system = {"role": "system", "content": "Answer in few words."}
    one, other = chat(system, USER), chat(system, {"role": "user", "content": "Hello"})
    shared = chat(system, add_generation_prompt=False)
    assert one[: len(shared)] == other[: len(shared)] == shared


def test_the_generation_prompt_is_an_open_assistant_header() -> None:
    closed, opened = chat(USER, add_generation_prompt=False), chat(USER)
    assert opened[: len(closed)] == closed
    assert closed[-1] == END_OF_TURN
    assert opened[-1] != END_OF_TURN


def test_each_message_ends_once() -> None:
    assert chat(USER, USER, USER).count(END_OF_TURN) == 3


def test_a_continued_message_stays_open() -> None:
    begun = {"role": "assistant", "content": "It is"}
    opened = chat(USER, begun, add_generation_prompt=False, continue_final_message=True)
    closed = chat(USER, begun, add_generation_prompt=False)
    assert [*opened, END_OF_TURN] == closed
    with pytest.raises(BadPrompt, match="Cannot set both"):
        chat(USER, begun, continue_final_message=True)


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"template_kwargs": {"documents": [{"text": "d"}]}},
        {"template_kwargs": {"enable_thinking": True, "reasoning_effort": "high"}},
        {"template_kwargs": {"style": "brief"}},
    ],
)
def test_tools_documents_thinking_and_settings_show_in_the_prompt(
    options: dict[str, object],
) -> None:
    assert chat(USER, **options) != chat(USER)


def test_an_effort_without_thinking_does_not_show() -> None:
    kwargs = {"reasoning_effort": "none", "enable_thinking": False}
    assert chat(USER, template_kwargs=kwargs) == chat(USER)


def test_content_parts_are_joined_as_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat({"role": "user", "content": parts}) == chat({"role": "user", "content": "one\ntwo"})


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {}}], 5])
def test_what_is_no_text_is_refused(content: object) -> None:
    with pytest.raises(BadPrompt):
        chat({"role": "user", "content": content})


def test_tool_calls_of_the_assistant_show() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert chat(USER, {"role": "assistant", "content": None, "tool_calls": calls}) != chat(
        USER, {"role": "assistant", "content": None}
    )
