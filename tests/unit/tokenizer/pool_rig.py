"""Prompts for a pool, and what it counts."""

import json
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aibrix_extproc.extproc.openai import parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import REASONS, Reason, TokenizerPool, TokenizerUnavailable
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, expected

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
CHAT_RENDER = CHAT + "/render"
ENOUGH_S = 10.0


def completion(text: str = "hello", model: str = "m", **fields: Any) -> Prompt:
    body = {"model": model, "prompt": text} | fields
    prompt = parse_body(COMPLETION, json.dumps(body).encode()).prompt
    assert prompt is not None
    return prompt


def chat(text: str = "hello", model: str = "m", **fields: Any) -> Prompt:
    body = {"model": model, "messages": [{"role": "user", "content": text}]} | fields
    prompt = parse_body(CHAT, json.dumps(body).encode()).prompt
    assert prompt is not None
    return prompt


def ids(text: str) -> "array[int]":
    return expected({"prompt": text})


@asynccontextmanager
async def started(metrics: Metrics | None = None, **settings: Any) -> AsyncIterator[TokenizerPool]:
    given = {"tokenizer_render": False} | settings
    pool = TokenizerPool(Settings(**given), metrics or Metrics())
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def failures(metrics: Metrics, reason: Reason) -> float:
    name = "aibrix_extproc_tokenizer_failures_total"
    return counted(metrics, name, reason=reason.value)


async def reason_of(pool: TokenizerPool, prompt: Prompt, *pods: str, deadline_s: float = 5) -> str:
    with pytest.raises(TokenizerUnavailable) as unavailable:
        await pool.tokenize(prompt, pods, deadline_s)
    assert unavailable.value.reason in REASONS
    return unavailable.value.reason


def answer_with(server: TokenizerServer, status: int, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type="application/json")

    server.tokenize = handler
