"""Bodies of requests, and what is read of them."""

import json
from typing import Any

from aibrix_extproc.extproc.openai import (
    ParsedBody,
    parse_body,
)
from aibrix_extproc.extproc.prompts import Prompt

CHAT = "/v1/chat/completions"

COMPLETION = "/v1/completions"

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ParsedBody:
    return parse_body(CHAT, json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def completion(**fields: Any) -> ParsedBody:
    return parse_body(COMPLETION, json.dumps({"model": "m", "prompt": "hello"} | fields).encode())


def prompt_of(parsed: ParsedBody) -> Prompt:
    assert parsed.prompt is not None
    return parsed.prompt


def key(parsed: ParsedBody) -> bytes:
    return prompt_of(parsed).cache_key
