"""Chat templates and tokenizers that try to break a claim, small enough to be read.

A template maps a chat's body to a list of special tokens (ints) and texts; a tokenizer maps that
to ids. Special tokens are never merged with what stands beside them; `plain_turns` has none.
"""

import functools
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Body = Mapping[str, Any]
Rendered = list[int | str]
Template = Callable[[Body], Rendered]

BOS, START, END, TOOLS, THINK = 1, 2, 3, 4, 5
FIRST_BYTE = 16
FIRST_MERGE = FIRST_BYTE + 256

_VOCABULARY = [
    b"th", b"he", b"the", b" t", b" th", b" the", b"in", b"er", b"an", b" a", b" an", b"and",
    b" and", b"ab", b"ba", b"aba", b"abab", b"aa", b"aaaa", b"aaaaaaaa", b": ", b"\n\n", b".\n",
    b".\n\n", b"user", b"assistant", b"ass", b"ist", b"ant", b"User", b" hello", b"hello",
    b"o\n", b"e\n", b"a\n", b"b\nU", b"?\n", b": a", b": th", b"lo th",
]  # fmt: skip
_RANKS = {piece: rank for rank, piece in enumerate(_VOCABULARY)}


@functools.lru_cache(maxsize=4096)
def merged(text: str) -> tuple[int, ...]:
    """Byte pair encoding of the whole text, without parting words first: merges reach far.

    Piece after piece of the vocabulary is merged wherever it can be, from left to right.
    """
    parts = [bytes([byte]) for byte in text.encode()]
    for piece in _VOCABULARY:
        if piece not in text.encode():
            continue
        merging: list[bytes] = []
        for part in parts:
            if merging and merging[-1] + part == piece:
                merging[-1] = piece
            else:
                merging.append(part)
        parts = merging
    return tuple(_RANKS[p] + FIRST_MERGE if p in _RANKS else FIRST_BYTE + p[0] for p in parts)


def encode(rendered: Sequence[int | str]) -> "array[int]":
    """Ids; texts that stand beside each other are one text."""
    ids: list[int] = []
    text = ""
    for part in [*rendered, 0]:
        if isinstance(part, str):
            text += part
            continue
        ids += merged(text)
        text = ""
        if part:
            ids.append(part)
    return array("I", ids)


def _turn(role: str, *content: int | str) -> Rendered:
    return [START, role, "\n", *content, END, "\n"]


def _prompt() -> Rendered:
    return [START, "assistant", "\n"]


def _last_user(messages: Sequence[Body]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)


def usual(body: Body) -> Rendered:
    """In the manner of ChatML: it only appends."""
    tools = [TOOLS, json.dumps(body["tools"])] if body.get("tools") else []
    turns = [part for m in body["messages"] for part in _turn(m["role"], m["content"])]
    return [BOS, *tools, *turns, *_prompt()]


def long_generation_prompt(body: Body) -> Rendered:
    """A generation prompt that the answer does not begin with in the history."""
    return [*usual(body), THINK, "\n\n", THINK, "\n\n"]


def tools_in_last_user(body: Body) -> Rendered:
    """In the manner of Mistral: the tools stand before the last user message."""
    out: Rendered = [BOS]
    last = _last_user(body["messages"])
    for index, message in enumerate(body["messages"]):
        if index == last and body.get("tools"):
            out += [TOOLS, json.dumps(body["tools"]), TOOLS]
        out += _turn(message["role"], message["content"])
    return [*out, *_prompt()]


def drops_reasoning(body: Body) -> Rendered:
    """In the manner of Qwen 3: reasoning is shown after the last user message alone."""
    out: Rendered = [BOS]
    last = _last_user(body["messages"])
    for index, message in enumerate(body["messages"]):
        reasoning = message.get("reasoning_content")
        shown = [THINK, reasoning, THINK] if reasoning and index > last else []
        out += _turn(message["role"], *shown, message["content"])
    return [*out, *_prompt()]


def counts_messages(body: Body) -> Rendered:
    """The number of messages stands in the header."""
    return [BOS, f"{len(body['messages'])} messages\n", *usual(body)[1:]]


def trims(body: Body) -> Rendered:
    """Texts lose their white space, and fields of a client's own are not shown."""
    turns = [part for m in body["messages"] for part in _turn(m["role"], m["content"].strip())]
    return [BOS, *turns, *_prompt()]


def switches(body: Body) -> Rendered:
    """A word of the last message makes the generation prompt another, and a long one."""
    quick = "quick" in body["messages"][-1]["content"]
    return [*usual(body), *([THINK, "no thoughts are to be had here", THINK] if quick else [])]


def shows_names(body: Body) -> Rendered:
    """A name stands before each text."""
    named = [{**m, "content": f"{m.get('name', '')}: {m['content']}"} for m in body["messages"]]
    return usual({**body, "messages": named})


def plain_turns(body: Body) -> Rendered:
    """No special token between turns: merges reach across."""
    text = "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"])
    return [BOS, text + "assistant:"]


class Dated:
    """Prints a date that changes: no evidence can foresee it."""

    date = "monday"

    def __call__(self, body: Body) -> Rendered:
        return [BOS, self.date, *usual(body)[1:]]
