"""When two prompts are the same."""

import json
from typing import Any

import pytest

from aibrix_extproc.extproc.openai import (
    parse_body,
)
from tests.unit.extproc.extproc_bodies import (
    CHAT,
    COMPLETION,
    HELLO,
    chat,
    completion,
    key,
    prompt_of,
)


class TestCacheKey:
    def test_equal_prompts_have_equal_keys_and_are_equal(self) -> None:
        assert prompt_of(chat()) == prompt_of(chat())
        assert hash(prompt_of(chat())) == hash(prompt_of(chat()))

    @pytest.mark.parametrize(
        "fields",
        [
            {"temperature": 0.5, "top_p": 1, "seed": 7, "stop": ["x"]},
            {"stream": True, "stream_options": {"include_usage": True}},
            {"max_tokens": 5, "user": "u", "metadata": {"a": "b"}, "cache_salt": "s"},
        ],
    )
    def test_sampling_fields_do_not_count(self, fields: dict[str, Any]) -> None:
        assert key(chat(**fields)) == key(chat())
        assert key(completion(**fields)) == key(completion())

    @pytest.mark.parametrize(
        "fields",
        [
            {"model": "other"},
            {"messages": [{"role": "user", "content": "hello "}]},
            {"messages": [{"role": "system", "content": "hello"}]},
            {"messages": [*HELLO, *HELLO]},
            {"tools": []},
            {"tool_choice": "none"},
            {"chat_template": "x"},
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"reasoning_effort": "low"},
            {"documents": []},
            {"add_generation_prompt": False},
            {"continue_final_message": True},
            {"add_special_tokens": True},
            {"mm_processor_kwargs": {}},
            {"truncate_prompt_tokens": 3},
            {"response_format": {"type": "json_object"}},
            {"a_field_of_a_later_version": 1},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_everything_that_may_decide_the_tokens_counts(self, fields: dict[str, Any]) -> None:
        assert key(chat(**fields)) != key(chat())

    def test_kinds_never_share_a_key(self) -> None:
        body = json.dumps({"model": "m", "messages": HELLO, "prompt": "hello"}).encode()
        assert key(parse_body(CHAT, body)) != key(parse_body(COMPLETION, body))

    def test_only_the_first_prompt_of_a_list_counts(self) -> None:
        assert key(completion(prompt=["a", "b"])) == key(completion(prompt="a"))
        assert key(completion(prompt=["a", "b"])) != key(completion(prompt=["b", "a"]))

    def test_pieces_of_different_cut_are_different(self) -> None:
        assert key(completion(a=1, b=2)) != key(completion(a1b=2))
        assert key(completion(ab=1)) != key(completion(a=1, b=1))

    def test_the_order_of_fields_does_not_count(self) -> None:
        one = parse_body(COMPLETION, b'{"model":"m","prompt":"x","suffix":"y"}')
        two = parse_body(COMPLETION, b'{"suffix":"y","prompt":"x","model":"m"}')
        assert key(one) == key(two)

    def test_the_answers_length_counts_where_the_prompt_must_fit_beside_it(self) -> None:
        fits = {"truncate_prompt_tokens": -1}
        assert key(chat(**fits, max_tokens=5)) != key(chat(**fits, max_tokens=6))
