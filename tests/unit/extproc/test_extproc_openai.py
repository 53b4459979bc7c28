"""What is read of a request's body, and which bodies are refused."""

import json
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from aibrix_extproc.errors import BadBody, NoModelInRequest
from aibrix_extproc.extproc.openai import (
    MAX_FIELDS,
    MAX_ITEMS,
    is_completion_path,
    parse_body,
    peek_model,
)
from aibrix_extproc.extproc.prompts import PromptKind
from tests.unit.extproc.extproc_bodies import CHAT, COMPLETION, HELLO, chat, completion, prompt_of


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs."""
    lines = 0

    def trace(_frame: object, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


class TestPaths:
    @pytest.mark.parametrize("path", [CHAT, COMPLETION, CHAT + "?a=b", COMPLETION + "?"])
    def test_the_two_paths_count_with_and_without_a_query(self, path: str) -> None:
        assert is_completion_path(path)

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings", CHAT + "/render", "/", ""])
    def test_no_other_path_counts(self, path: str) -> None:
        assert not is_completion_path(path)

    def test_a_query_does_not_change_how_a_body_is_read(self) -> None:
        body = json.dumps({"model": "m", "messages": HELLO}).encode()
        assert prompt_of(parse_body(CHAT + "?x=1", body)).kind is PromptKind.CHAT


class TestFields:
    def test_a_chat_keeps_its_body_byte_for_byte(self) -> None:
        body = b' {"model" : "m","messages":[ {"role":"user", "content":"h\\u00e9"}]} '
        prompt = prompt_of(parse_body(CHAT, body))
        assert (prompt.kind, prompt.model, prompt.body) == (PromptKind.CHAT, "m", body)

    def test_a_text_prompt_is_unescaped(self) -> None:
        body = b'{"model":"m","prompt":"caf\\u00e9 \\"x\\""}'
        prompt = prompt_of(parse_body(COMPLETION, body))
        assert (prompt.kind, prompt.text) == (PromptKind.COMPLETION, 'café "x"')

    def test_of_a_list_of_texts_the_first_counts(self) -> None:
        prompt = prompt_of(completion(prompt=["one", "two", "three"]))
        assert (prompt.text, prompt.prompts) == ("one", 3)

    def test_token_ids_need_no_text(self) -> None:
        prompt = prompt_of(completion(prompt=[0, 5, 2**32 - 1]))
        assert prompt.kind is PromptKind.TOKENS
        assert (prompt.text, prompt.token_ids) == (None, array("I", [0, 5, 2**32 - 1]))

    def test_of_lists_of_token_ids_the_first_counts(self) -> None:
        prompt = prompt_of(completion(prompt=[[1, 2], [3]]))
        assert (prompt.token_ids, prompt.prompts) == (array("I", [1, 2]), 2)

    def test_prompt_embeddings_alone_leave_nothing_to_tokenize(self) -> None:
        body = json.dumps({"model": "m", "prompt_embeds": "AAAA"}).encode()
        parsed = parse_body(COMPLETION, body)
        assert (parsed.prompt, parsed.prompt_bytes) == (None, 0)

    def test_what_routing_reads_is_read(self) -> None:
        parsed = chat(
            cache_salt="s",
            stream=True,
            max_tokens=7,
            vllm_xargs={"kv_cache_report_mode": "full"},
            truncate_prompt_tokens=9,
        )
        assert (parsed.cache_salt, parsed.stream, parsed.max_tokens) == ("s", True, 7)
        assert parsed.report_mode
        assert prompt_of(parsed).truncate_prompt_tokens == 9

    def test_nothing_set_means_no_salt_no_stream_no_limit(self) -> None:
        parsed = chat()
        assert (parsed.cache_salt, parsed.stream, parsed.max_tokens) == (None, False, None)
        assert not parsed.report_mode

    def test_of_the_two_limits_a_chat_takes_the_newer_name(self) -> None:
        assert chat(max_tokens=7, max_completion_tokens=3).max_tokens == 3
        assert completion(max_tokens=7, max_completion_tokens=3).max_tokens == 7

    def test_special_tokens_are_added_to_a_text_unless_the_body_says_no(self) -> None:
        assert prompt_of(completion()).add_special_tokens
        assert not prompt_of(completion(add_special_tokens=False)).add_special_tokens

    @pytest.mark.parametrize("keep", [True, "9", 2.5, -2, [9], {"a": 1}, None])
    def test_a_truncation_that_is_no_number_of_tokens_is_left_to_the_engine(
        self, keep: object
    ) -> None:
        assert prompt_of(chat(truncate_prompt_tokens=keep)).truncate_prompt_tokens is None

    def test_fields_that_do_not_concern_routing_may_hold_anything(self) -> None:
        parsed = chat(
            temperature="hot",
            max_tokens="many",
            stream="yes",
            cache_salt=5,
            vllm_xargs=[1],
            stop={"a": [None]},
            unknown_field={"deep": [1, {"x": 2}]},
        )
        assert (parsed.cache_salt, parsed.stream, parsed.max_tokens) == (None, False, None)

    def test_of_two_fields_of_one_name_the_last_counts(self) -> None:
        body = b'{"model":"a","prompt":"x","model":"b","prompt":"y"}'
        parsed = parse_body(COMPLETION, body)
        assert (parsed.model, prompt_of(parsed).text) == ("b", "y")

    def test_an_escaped_name_is_the_same_name(self) -> None:
        assert parse_body(COMPLETION, b'{"mod\\u0065l":"m","prompt":"x"}').model == "m"


class TestEstimate:
    def test_a_text_counts_its_bytes(self) -> None:
        assert completion(prompt="né").prompt_bytes == 3

    def test_token_ids_count_four_bytes_each(self) -> None:
        assert completion(prompt=[1, 2, 3]).prompt_bytes == 12

    def test_a_chat_counts_the_text_of_its_messages_and_its_tools(self) -> None:
        plain = chat(messages=[{"role": "user", "content": "a" * 400}]).prompt_bytes
        tools = [{"type": "function", "function": {"name": "f"}}]
        with_tools = chat(messages=[{"role": "user", "content": "a" * 400}], tools=tools)
        assert 400 <= plain <= 402
        assert with_tools.prompt_bytes == plain + len(json.dumps(tools))

    def test_an_image_inside_a_message_does_not_count_as_text(self) -> None:
        parts = [
            {"type": "text", "text": "what is it"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
        ]
        assert chat(messages=[{"role": "user", "content": parts}]).prompt_bytes < 20


class TestRefusals:
    @pytest.mark.parametrize(
        "body",
        [b"", b"hello", b"[]", b'"x"', b"null", b'{"model":"m"', b'{"model":"m","messages":[}]}'],
    )
    def test_a_body_that_is_no_json_object_is_refused(self, body: bytes) -> None:
        with pytest.raises(BadBody) as refused:
            parse_body(CHAT, body)
        assert refused.value.headers == {"x-error-request-body-processing": "true"}
        assert "Send one" in refused.value.message

    @pytest.mark.parametrize("model", [None, "", 5, ["m"], {"a": 1}, True])
    def test_a_model_that_is_no_name_is_no_model(self, model: object) -> None:
        with pytest.raises(NoModelInRequest) as refused:
            chat(model=model)
        assert refused.value.headers["x-error-no-model-in-request"] == "true"
        assert refused.value.headers["x-error-request-body-processing"] == "true"

    def test_a_missing_model_is_no_model(self) -> None:
        with pytest.raises(NoModelInRequest):
            parse_body(COMPLETION, b'{"prompt":"x"}')

    @pytest.mark.parametrize(
        "messages", [None, [], {}, "hello", [1], ["hello"], [[]], [HELLO[0], "x"], [None]]
    )
    def test_messages_must_be_a_list_of_objects(self, messages: object) -> None:
        with pytest.raises(BadBody) as refused:
            chat(messages=messages)
        assert refused.value.param == "messages"

    def test_missing_messages_are_refused(self) -> None:
        with pytest.raises(BadBody) as refused:
            parse_body(CHAT, b'{"model":"m","prompt":"x"}')
        assert refused.value.param == "messages"

    @pytest.mark.parametrize(
        "prompt",
        [
            None,
            5,
            {},
            {"a": 1},
            [],
            [[]],
            [True],
            [1, True],
            [1.5],
            [-1],
            [2**32],
            [10**30],
            ["a", 1],
            [1, "a"],
            [[1], "a"],
            [["a"]],
            [[1, True]],
            [[-1]],
            [[[1]]],
            [None],
        ],
    )
    def test_a_prompt_of_another_type_is_refused(self, prompt: object) -> None:
        with pytest.raises(BadBody) as refused:
            completion(prompt=prompt)
        assert refused.value.param == "prompt"

    def test_a_missing_prompt_is_refused(self) -> None:
        with pytest.raises(BadBody) as refused:
            parse_body(COMPLETION, b'{"model":"m","messages":[{}]}')
        assert refused.value.param == "prompt"

    def test_an_empty_text_is_the_engines_to_refuse(self) -> None:
        assert prompt_of(completion(prompt="")).text == ""

    @pytest.mark.parametrize(
        "body",
        [
            b'{"model":"m","prompt":"\xff\xfe"}',
            b'{"\xff":1,"model":"m","prompt":"x"}',
            b'{"model":"\xff","prompt":"x"}',
            b'{"model":"m","prompt":"x","temperature":NaN}',
            b'{"model":"m","prompt":"x","temperature":1e99999}',
            b'{"model":"m","prompt":"x","max_tokens":' + b"9" * 10_000 + b"}",
            b'{"model":"m","prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"model":"m","prompt":"x","a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"model":"m","prompt":"x","vllm_xargs":' + b'{"a":' * 10_000 + b"}" * 10_001,
            b"[" * 100_000,
            b'{"a":' * 10_000,
            b'{"model":"m","prompt":"\\ud800"}',
            b'\xef\xbb\xbf{"model":"m","prompt":"x"}',
            b"\x00" * 100,
            b'{"model":"m","messages":[{"content":' + b"[" * 900 + b"]" * 900 + b"}]}",
            b'{"model":"m","messages":[{"content":[{"text":5},6]}],"cache_salt":"\xff"}',
        ],
    )
    @pytest.mark.parametrize("path", [CHAT, COMPLETION])
    def test_hostile_bytes_pass_or_are_refused_and_raise_nothing_else(
        self, path: str, body: bytes
    ) -> None:
        with suppress(BadBody, NoModelInRequest):
            parse_body(path, body)
        peek_model(body)


class TestBounds:
    """A body of 16 MiB may hold millions of values: what is made of them is bounded."""

    def test_more_fields_than_any_request_has_are_refused(self) -> None:
        assert chat(**{f"f{i}": i for i in range(MAX_FIELDS - 2)}).model == "m"
        with pytest.raises(BadBody, match="fields"):
            chat(**{f"f{i}": i for i in range(MAX_FIELDS - 1)})

    def test_of_very_many_prompts_only_the_first_is_read(self) -> None:
        many = [[1, 2]] + [[-1]] * MAX_ITEMS
        prompt = prompt_of(completion(prompt=many))
        assert (prompt.token_ids, prompt.prompts) == (array("I", [1, 2]), MAX_ITEMS + 1)
        prompt = prompt_of(completion(prompt=["a"] * (MAX_ITEMS + 1)))
        assert (prompt.text, prompt.prompts) == ("a", MAX_ITEMS + 1)

    @pytest.mark.parametrize("first", [None, {}, [], [-1], ["a"], True])
    def test_the_first_of_very_many_prompts_must_be_one(self, first: object) -> None:
        with pytest.raises(BadBody) as refused:
            completion(prompt=[first] + [[1]] * MAX_ITEMS)
        assert refused.value.param == "prompt"

    def test_a_long_prompt_of_token_ids_is_read_whole(self) -> None:
        ids = list(range(MAX_ITEMS + 1))
        prompt = prompt_of(completion(prompt=ids))
        assert (prompt.token_ids, prompt.prompts) == (array("I", ids), 1)

    def test_very_many_messages_or_parts_count_their_bytes(self) -> None:
        messages = [{"role": "user", "content": "x"}] * (MAX_ITEMS + 1)
        assert chat(messages=messages).prompt_bytes == len(json.dumps(messages))
        parts = [{"text": "x"}] * (MAX_ITEMS + 1)
        content = [{"role": "user", "content": parts}]
        assert chat(messages=content).prompt_bytes == len(json.dumps(parts))

    @pytest.mark.parametrize(
        ("path", "start", "item", "end"),
        [
            (COMPLETION, b'"prompt":[', b"[1]", b"]"),
            (COMPLETION, b'"prompt":[', b'""', b"]"),
            (CHAT, b'"messages":[', b"{}", b"]"),
            (CHAT, b'"messages":[{"content":[', b"{}", b"]}]"),
            (CHAT, b'"messages":[', b'{"content":[%b]}' % b",".join([b"{}"] * 1000), b"]"),
        ],
    )
    def test_no_python_code_runs_for_each_of_a_million_values(
        self, path: str, start: bytes, item: bytes, end: bytes
    ) -> None:
        body = b'{"model":"m",%b%b%b}' % (start, b",".join([item] * (3_000_000 // len(item))), end)
        assert lines_run(lambda: parse_body(path, body)) < 100_000


class TestPeek:
    @pytest.mark.parametrize(
        ("body", "model"),
        [
            (b'{"input":"x","model":"m"}', "m"),
            (b'{"model":5}', None),
            (b'{"model":""}', None),
            (b'{"input":"x"}', None),
            (b'["m"]', None),
            (b"--boundary\r\n", None),
            (b"", None),
        ],
    )
    def test_a_model_is_seen_where_the_body_is_an_object_with_one(
        self, body: bytes, model: str | None
    ) -> None:
        assert peek_model(body) == model
