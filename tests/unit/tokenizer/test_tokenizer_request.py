"""What is sent to a tokenizer, and how its replies are read."""

import json
import tracemalloc
from array import array
from typing import Any

import pytest

from aibrix_extproc.extproc.openai import MAX_FIELDS, parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.tokenizer import native
from aibrix_extproc.tokenizer.request import (
    BadReply,
    OtherReply,
    is_model_error,
    read_rendered,
    read_tokenized,
    render_path,
    tokenize_body,
    truncated,
)
from tests.backends import needs_core


@pytest.fixture(autouse=True, params=["python", pytest.param("core", marks=needs_core)])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads replies: every test runs with each."""
    if request.param == "python":
        monkeypatch.setattr(native, "_core", None)
    return str(request.param)


HELLO = [{"role": "user", "content": "hello there"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def prompt(path: str, body: bytes) -> Prompt:
    parsed = parse_body(path, body).prompt
    assert parsed is not None
    return parsed


def chat(**fields: Any) -> Prompt:
    body = {"model": "m", "messages": HELLO} | fields
    return prompt("/v1/chat/completions", json.dumps(body).encode())


def completion(**fields: Any) -> Prompt:
    body = {"model": "m", "prompt": "hello"} | fields
    return prompt("/v1/completions", json.dumps(body).encode())


def sent(of: Prompt, exclude_tools: bool = False) -> Any:
    return json.loads(tokenize_body(of, exclude_tools=exclude_tools))


class TestChat:
    def test_a_body_without_corrections_goes_as_it_came(self) -> None:
        body = b'{"messages" :[ {"role":"user","content":"h\\u00e9"}], "model":"m","stream":true}'
        of = prompt("/v1/chat/completions", body)
        assert tokenize_body(of, exclude_tools=True) == body

    @pytest.mark.parametrize(
        "fields",
        [
            {"tools": TOOLS},
            {"tools": TOOLS, "tool_choice": "auto"},
            {"continue_final_message": True, "add_generation_prompt": False},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"add_special_tokens": True},
            {"reasoning_effort": None, "documents": None},
            {"truncate_prompt_tokens": 5},
        ],
        ids=" ".join,
    )
    def test_fields_that_tokenize_reads_stay_where_they_are(self, fields: dict[str, Any]) -> None:
        of = chat(**fields)
        assert tokenize_body(of, exclude_tools=True) is of.body

    @pytest.mark.parametrize(("effort", "thinks"), [("high", True), ("none", False)])
    def test_the_reasoning_effort_becomes_a_template_argument(
        self, effort: str, thinks: bool
    ) -> None:
        assert sent(chat(reasoning_effort=effort))["chat_template_kwargs"] == {
            "reasoning_effort": effort,
            "enable_thinking": thinks,
        }

    def test_documents_become_a_template_argument(self) -> None:
        documents = [{"title": "t", "text": "doc text"}]
        assert sent(chat(documents=documents))["chat_template_kwargs"] == {"documents": documents}

    def test_a_top_level_field_wins_over_the_clients_own_argument(self) -> None:
        of = chat(
            reasoning_effort="high", chat_template_kwargs={"reasoning_effort": "low", "other": 1}
        )
        assert sent(of)["chat_template_kwargs"] == {
            "reasoning_effort": "high",
            "enable_thinking": True,
            "other": 1,
        }

    def test_the_clients_own_enable_thinking_stays(self) -> None:
        of = chat(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False})
        assert sent(of)["chat_template_kwargs"]["enable_thinking"] is False

    def test_null_template_arguments_count_as_none_given(self) -> None:
        of = chat(reasoning_effort="none", chat_template_kwargs=None)
        assert sent(of)["chat_template_kwargs"]["enable_thinking"] is False

    def test_template_arguments_of_a_wrong_type_are_the_tokenizers_to_refuse(self) -> None:
        of = chat(reasoning_effort="high", chat_template_kwargs=[1])
        assert tokenize_body(of, exclude_tools=False) is of.body

    def test_a_correction_keeps_the_bytes_of_all_other_fields(self) -> None:
        body = b'{"model":"m","messages":[ {"content": "h\\u00e9", "n": 1.50}],"documents":[{}]}'
        corrected = tokenize_body(prompt("/v1/chat/completions", body), exclude_tools=False)
        assert b'[ {"content": "h\\u00e9", "n": 1.50}]' in corrected
        assert json.loads(corrected)["chat_template_kwargs"] == {"documents": [{}]}

    def test_documents_are_moved_without_being_read(self) -> None:
        of = chat(documents=[[]] * 300_000)
        tracemalloc.start()
        try:
            corrected = tokenize_body(of, exclude_tools=False)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(corrected) > 2 * 300_000
        assert peak_bytes < 8 * len(of.body)

    def test_more_template_arguments_than_any_template_reads_stay_as_they_are(self) -> None:
        arguments = {f"a{i}": i for i in range(MAX_FIELDS + 1)}
        of = chat(reasoning_effort="high", chat_template_kwargs=arguments)
        assert tokenize_body(of, exclude_tools=False) is of.body

    def test_names_that_need_escapes_survive_a_correction(self) -> None:
        of = chat(**{'quo"te\n\u00e9': 1, "documents": []})
        assert sent(of)['quo"te\n\u00e9'] == 1

    def test_tools_are_left_out_where_the_engines_leave_them_out(self) -> None:
        of = chat(tools=TOOLS, tool_choice="none")
        assert "tools" not in sent(of, exclude_tools=True)
        assert sent(of, exclude_tools=False)["tools"] == TOOLS


class TestCompletion:
    def test_a_text_is_sent_alone_with_its_special_tokens(self) -> None:
        assert sent(completion(temperature=1, max_tokens=5)) == {
            "model": "m",
            "prompt": "hello",
            "add_special_tokens": True,
        }

    def test_special_tokens_are_left_out_where_the_body_says_so(self) -> None:
        assert sent(completion(add_special_tokens=False))["add_special_tokens"] is False

    def test_of_several_texts_the_first_is_sent_and_none_is_rendered(self) -> None:
        of = completion(prompt=["one", "two"])
        assert sent(of)["prompt"] == "one"
        assert render_path(of) is None


class TestTruncation:
    IDS = array("I", range(10))

    def test_the_last_tokens_are_kept(self) -> None:
        assert truncated(self.IDS, chat(truncate_prompt_tokens=3)) == array("I", [7, 8, 9])

    def test_the_first_are_kept_where_the_body_asks_for_that_side(self) -> None:
        of = chat(truncate_prompt_tokens=3, truncation_side="right")
        assert truncated(self.IDS, of) == array("I", [0, 1, 2])

    @pytest.mark.parametrize("keep", [10, 11, None])
    def test_a_prompt_that_fits_is_whole(self, keep: int | None) -> None:
        assert truncated(self.IDS, chat(truncate_prompt_tokens=keep)) == self.IDS

    def test_zero_keeps_nothing(self) -> None:
        assert len(truncated(self.IDS, chat(truncate_prompt_tokens=0))) == 0

    def test_minus_one_keeps_what_fits_the_context_beside_the_answer(self) -> None:
        reply = json.dumps({"tokens": list(self.IDS), "max_model_len": 8}).encode()
        assert len(read_tokenized(reply, chat(truncate_prompt_tokens=-1))) == 8
        assert len(read_tokenized(reply, chat(truncate_prompt_tokens=-1, max_tokens=3))) == 5

    def test_minus_one_keeps_all_where_the_context_length_is_unknown(self) -> None:
        assert truncated(self.IDS, chat(truncate_prompt_tokens=-1)) == self.IDS

    def test_a_rendered_prompt_is_exact_and_never_cut(self) -> None:
        reply = json.dumps({"token_ids": [1, 2, 3]}).encode()
        assert len(read_rendered(reply, chat(truncate_prompt_tokens=2))) == 3


class TestReplies:
    @pytest.mark.parametrize(
        "reply",
        [
            b"",
            b"<html>",
            b"[]",
            b"{}",
            b'{"tokens": null}',
            b'{"tokens": "1"}',
            b'{"tokens": [1, "2"]}',
            b'{"tokens": [1.5]}',
            b'{"tokens": [true]}',
            b'{"tokens": [-1]}',
            b'{"tokens": [4294967296]}',
            b'{"tokens": [1' + b"0" * 400 + b"]}",
            b'{"tokens": ' + b"[" * 10_000,
        ],
    )
    def test_a_reply_without_ids_is_bad(self, reply: bytes) -> None:
        with pytest.raises(BadReply):
            read_tokenized(reply, chat())

    @pytest.mark.parametrize("reply", [b"{}", b"[]", b'{"tokens":[1]}', b'[[{"role":"user"}],[]]'])
    def test_a_render_of_another_form_is_told_from_a_broken_one(self, reply: bytes) -> None:
        with pytest.raises(OtherReply):
            read_rendered(reply, chat())

    def test_a_broken_render_is_bad(self) -> None:
        with pytest.raises(BadReply):
            read_rendered(b'{"token_ids":[1', chat())

    def test_of_several_rendered_prompts_the_first_counts(self) -> None:
        reply = b'[{"token_ids":[1,2]},{"token_ids":[3]}]'
        assert read_rendered(reply, completion()) == array("I", [1, 2])

    @pytest.mark.parametrize(
        ("reply", "about_the_model"),
        [
            (b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError"}}', True),
            (b'{"error":{"message":"no such thing","param":"model"}}', True),
            (b'{"error":{"message":"Not Found","type":"Not Found","code":404}}', False),
            (b'{"detail":"Not Found"}', False),
            (b"404 page not found", False),
            (b"", False),
        ],
    )
    def test_a_404_for_a_model_is_told_from_one_for_a_path(
        self, reply: bytes, about_the_model: bool
    ) -> None:
        assert is_model_error(reply) is about_the_model
