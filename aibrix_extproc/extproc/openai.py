"""What a request's body asks for: the model, the prompt, and the few fields that routing reads.

Owns the shape of `/v1/chat/completions` and `/v1/completions` as far as a decision needs it.
Pure: it knows no Envoy, no tokenizer and no pod. A body is scanned once into slices of its
top-level fields; only the slices that matter are read. It is never written anew: engines and
tokenizers get the client's own bytes. What is wrong with a field that routing does not read is
the engine's to say.
"""

import contextlib
from array import array
from collections.abc import Mapping
from typing import Final, cast

import msgspec
from msgspec import Raw

from aibrix_extproc.errors import BadBody, NoModelInRequest
from aibrix_extproc.extproc.prompts import Prompt, PromptKind, cache_key
from aibrix_extproc.extproc.raw_fields import (
    UNREADABLE,
    decoded,
    head,
    is_null,
    scalar,
    size_bytes,
)

CHAT_PATH: Final = "/v1/chat/completions"
COMPLETION_PATH: Final = "/v1/completions"

MAX_FIELDS: Final = 1024
"""Top-level fields of a body. Engines know about a hundred; each costs a step of Python here, and
is kept while the prompt is tokenized."""

MAX_ITEMS: Final = 16_384
"""Prompts, messages or parts that are looked at one by one. A body of 16 MiB may hold millions:
seconds in which nothing else is answered."""

_DEFAULT_COMPLETION_TOKENS: Final = 16  # OpenAI's default of max_tokens on /v1/completions


class ParsedBody(msgspec.Struct, frozen=True):
    """What routing reads of a body."""

    model: str
    prompt: Prompt | None
    """None where there is none to tokenize: prompt embeddings alone."""
    prompt_bytes: int
    """Length of the prompt's text, so that bytes / 4 estimates its tokens. Media do not count."""
    cache_salt: str | None
    stream: bool
    max_tokens: int | None
    """Limit of the answer, None where the body sets none."""
    report_mode: bool
    """The body asks the engine to announce its hits again (vLLM 0.26+)."""


class _Part(msgspec.Struct, gc=False):
    text: Raw = Raw()


class _Message(msgspec.Struct, gc=False):
    content: Raw = Raw()


class _ModelOnly(msgspec.Struct):
    model: str


_fields_of: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_messages_of: Final = msgspec.json.Decoder(list[_Message]).decode
_parts_of: Final = msgspec.json.Decoder(list[_Part]).decode
_prompt_of: Final = msgspec.json.Decoder(str | list[str | int | list[int]]).decode
_one_prompt_of: Final = msgspec.json.Decoder(str | list[int]).decode
_items_of: Final = msgspec.json.Decoder(list[Raw]).decode
_model_of: Final = msgspec.json.Decoder(_ModelOnly).decode


def is_completion_path(path: str) -> bool:
    """Whether `path`, with or without a query string, is one of the two that carry prompts."""
    return path.partition("?")[0] in (CHAT_PATH, COMPLETION_PATH)


def parse_body(path: str, body: bytes) -> ParsedBody:
    """Read the body of a request to one of the two paths (`is_completion_path`).

    Raises BadBody (no JSON object, or `messages` or `prompt` of a wrong type) and
    NoModelInRequest (`model` is no text, or empty). Of two fields of one name the last counts,
    as in the engine.
    """
    try:
        fields = _fields_of(body)
    except UNREADABLE:
        raise BadBody(
            "The body is not a JSON object that can be read. Send one, in UTF-8, with the fields "
            "'model' and 'messages' or 'prompt'."
        ) from None
    if len(fields) > MAX_FIELDS:
        raise BadBody(f"The body has more than {MAX_FIELDS} fields. Send those of OpenAI's API.")
    model = scalar(fields, "model")
    if not isinstance(model, str) or not model:
        raise NoModelInRequest()
    is_chat = path.partition("?")[0] == CHAT_PATH
    max_tokens = _max_tokens(fields, is_chat)
    read_prompt = _chat if is_chat else _completion
    prompt, prompt_bytes = read_prompt(model, body, fields, max_tokens)
    salt = scalar(fields, "cache_salt")
    return ParsedBody(
        model=model,
        prompt=prompt,
        prompt_bytes=prompt_bytes,
        cache_salt=salt if isinstance(salt, str) and salt else None,
        stream=scalar(fields, "stream") is True,
        max_tokens=max_tokens,
        report_mode=_asks_for_report(fields),
    )


def peek_model(body: bytes) -> str | None:
    """The model of another path's body; None where it is no JSON object with one."""
    try:
        return _model_of(body).model or None
    except UNREADABLE:
        return None


def _chat(
    model: str, body: bytes, fields: Mapping[str, Raw], max_tokens: int | None
) -> tuple[Prompt | None, int]:
    try:
        messages = _messages_of(fields.get("messages", Raw()))
    except UNREADABLE:
        messages = []
    if not messages:
        raise BadBody(
            "The field 'messages' must be a list with at least one message, each an object with "
            "'role' and 'content'.",
            param="messages",
        )
    truncate, keeps_first = _truncation(fields)
    prompt = Prompt(
        kind=PromptKind.CHAT,
        model=model,
        body=body,
        cache_key=cache_key(PromptKind.CHAT, fields, truncate),
        fields=fields,
        truncate_prompt_tokens=truncate,
        truncate_keeps_first=keeps_first,
        max_output_tokens=max_tokens or 0,
        add_special_tokens=False,
    )
    whole = len(messages) > MAX_ITEMS
    text_bytes = size_bytes(fields["messages"]) if whole else _text_bytes(messages)
    return prompt, text_bytes + size_bytes(fields.get("tools", Raw()))


def _completion(
    model: str, body: bytes, fields: Mapping[str, Raw], max_tokens: int | None
) -> tuple[Prompt | None, int]:
    if "prompt_embeds" in fields and is_null(fields, "prompt"):
        return None, 0
    first, prompts = _first_prompt(fields.get("prompt", Raw()))
    if isinstance(first, str):
        kind, text, ids = PromptKind.COMPLETION, first, None
        first_bytes = memoryview(first.encode())
    else:
        kind, text, ids = PromptKind.TOKENS, None, _ids(first)
        first_bytes = memoryview(ids).cast("B")
    truncate, keeps_first = _truncation(fields)
    prompt = Prompt(
        kind=kind,
        model=model,
        body=body,
        cache_key=cache_key(kind, fields, truncate, first_bytes),
        fields=fields,
        text=text,
        token_ids=ids,
        prompts=prompts,
        truncate_prompt_tokens=truncate,
        truncate_keeps_first=keeps_first,
        max_output_tokens=_DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens,
        add_special_tokens=scalar(fields, "add_special_tokens") is not False,
    )
    return prompt, len(first_bytes)  # an id is four bytes: tokens * 4


def _first_prompt(value: Raw) -> tuple[str | list[int], int]:
    """The prompt that is routed by, and how many there are. Raises BadBody.

    Of more than MAX_ITEMS only the first is read; the others are the engine's to check.
    """
    try:
        if (many := _very_many(value)) is not None:
            return _one_prompt_of(many[0]), len(many)
        given = _prompt_of(value)
    except UNREADABLE:
        raise _bad_prompt() from None
    if isinstance(given, str):
        return given, 1
    first = given[0] if given else None
    if isinstance(first, int):
        return cast("list[int]", given), 1  # `_ids` finds what is no id among them, and faster
    if first is None or any(type(item) is not type(first) for item in given):
        raise _bad_prompt()
    return first, len(given)


def _very_many(value: Raw) -> list[Raw] | None:
    """The prompts of a list with more than MAX_ITEMS of them; None for all else."""
    if head(value) != b"[" or size_bytes(value) <= 2 * MAX_ITEMS:
        return None
    if bytes(memoryview(value)[1:64]).lstrip()[:1].isdigit():
        return None  # one prompt of token ids
    items = _items_of(value)
    return items if len(items) > MAX_ITEMS and not head(items[0]).isdigit() else None


def _ids(given: list[int]) -> "array[int]":
    try:
        ids = array("I", given)
    except (OverflowError, TypeError):
        raise _bad_prompt() from None
    if not ids:
        raise _bad_prompt()
    return ids


def _bad_prompt() -> BadBody:
    return BadBody(
        "The field 'prompt' must be a text, a list of texts, a list of token ids (0 to "
        "4294967295) or a list of such lists, and no list may be empty.",
        param="prompt",
    )


def _text_bytes(messages: list[_Message]) -> int:
    """Bytes of the text in the messages' contents: texts, or lists of parts.

    Past MAX_ITEMS parts a list counts as a whole.
    """
    total_bytes, parts_seen = 0, 0
    for message in messages:
        parts = _parts(message.content)
        parts_seen += len(parts)
        if parts and parts_seen <= MAX_ITEMS:
            total_bytes += sum(size_bytes(part.text) for part in parts)
        else:
            total_bytes += size_bytes(message.content)
    return total_bytes


def _parts(content: Raw) -> list[_Part]:
    """The parts of a content; none where it is a text, or cannot be read."""
    if head(content) == b"[":
        with contextlib.suppress(*UNREADABLE):
            return _parts_of(content)
    return []


def _truncation(fields: Mapping[str, Raw]) -> tuple[int | None, bool]:
    """How many tokens the engine keeps, and whether they are the first (`truncation_side`)."""
    keep = scalar(fields, "truncate_prompt_tokens")
    if type(keep) is not int or keep < -1:
        return None, False
    return keep, scalar(fields, "truncation_side") == "right"


def _max_tokens(fields: Mapping[str, Raw], is_chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if is_chat else ("max_tokens",)
    for name in names:
        value = scalar(fields, name)
        if type(value) is int and value >= 0:
            return value
    return None


def _asks_for_report(fields: Mapping[str, Raw]) -> bool:
    extra = decoded(fields, "vllm_xargs")
    return isinstance(extra, dict) and extra.get("kv_cache_report_mode") == "full"
