"""Recorded requests of a real vLLM through the client: the engine's own ids come out."""

import json
from array import array
from typing import Any

import pytest
from aiohttp import web

from aibrix_extproc.extproc.openai import parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool
from tests.support import data_path
from tests.unit.tokenizer.tokenizer_server import tokenizer_server

with data_path("tokenizer/recorded.jsonl").open() as _lines:
    RECORDED: list[dict[str, Any]] = [json.loads(line) for line in _lines]
PAIRS = [row for row in RECORDED if "tokenize_request" in row]
ROWS = {row["step"]: row for row in RECORDED}

READ_BY_TOKENIZE: dict[str, Any] = {
    "model": None,
    "prompt": None,
    "messages": None,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": None,
    "chat_template": None,
    "chat_template_kwargs": None,
    "tools": None,
}
"""The fields that vLLM's /tokenize reads, with their defaults; it ignores all others."""


def as_tokenize_reads_it(body: dict[str, Any]) -> dict[str, Any]:
    defaults = READ_BY_TOKENIZE | {"add_special_tokens": "prompt" in body}
    return {name: body.get(name, default) for name, default in defaults.items()}


def prompt_of(path: str, body: dict[str, Any]) -> Prompt:
    prompt = parse_body(path, json.dumps(body).encode()).prompt
    assert prompt is not None
    return prompt


async def recorded_tokenize(request: web.Request) -> web.Response:
    """Answers what the engine answered; a body that reads otherwise gets 400."""
    asked = as_tokenize_reads_it(await request.json())
    for row in PAIRS:
        if as_tokenize_reads_it(row["tokenize_request"]) == asked:
            return web.json_response(row["reply"])
    return web.json_response({"error": {"message": "not recorded"}}, status=400)


async def recorded_render(request: web.Request) -> web.Response:
    body = await request.json()
    for row in RECORDED:
        if row["path"] == request.path and row["body"] == body:
            return web.json_response(row["reply"])
    return web.json_response({"error": {"message": "not recorded"}}, status=400)


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: row["step"])
async def test_the_clients_body_is_tokenized_to_the_ids_of_the_engines_events(
    row: dict[str, Any],
) -> None:
    async with tokenizer_server() as server:
        server.tokenize = recorded_tokenize
        pool = TokenizerPool(Settings(tokenizer_render=False), Metrics())
        await pool.start()
        tokens = await pool.tokenize(prompt_of(row["path"], row["body"]), [server.address], 10)
        await pool.close()
    assert (tokens.source, tokens.ids) == ("tokenize", array("I", row["reply"]["tokens"]))


@pytest.mark.parametrize(
    ("rendered", "tokenized"),
    [("12_render_chat", "07_chat"), ("12_render_completion", "02_long")],
)
async def test_render_and_tokenize_give_the_same_ids_for_the_same_body(
    rendered: str, tokenized: str
) -> None:
    async with tokenizer_server() as server:
        server.render = recorded_render
        pool = TokenizerPool(Settings(tokenizer_render=True), Metrics())
        await pool.start()
        prompt = prompt_of(ROWS[tokenized]["path"], ROWS[rendered]["body"])
        tokens = await pool.tokenize(prompt, [server.address], 10)
        await pool.close()
    expected = array("I", ROWS[tokenized]["reply"]["tokens"])
    assert (tokens.source, tokens.ids) == ("render", expected)
