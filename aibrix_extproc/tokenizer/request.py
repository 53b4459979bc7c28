"""What is asked of a tokenizer, and what its replies mean. Pure: no socket, no clock.

Two ways (vLLM): `…/render` takes the client's body as it is and returns the ids the engine will
use (0.15+; later only where it is switched on); `/tokenize` takes a chat body too, but leaves out
some fields, which are put where it reads them. Checked against vLLM 0.32, see
tests/data/tokenizer.
"""

import json
from array import array
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from aibrix_extproc.extproc.openai import CHAT_PATH, COMPLETION_PATH, MAX_FIELDS
from aibrix_extproc.extproc.prompts import Prompt, PromptKind
from aibrix_extproc.tokenizer import native

TOKENIZE_PATH: Final = "/tokenize"
CHAT_RENDER_PATH: Final = f"{CHAT_PATH}/render"
COMPLETION_RENDER_PATH: Final = f"{COMPLETION_PATH}/render"


class BadReply(Exception):
    """A reply that is no JSON, or whose ids are no unsigned 32-bit ints."""


class OtherReply(Exception):
    """A reply in JSON that says something else: another API lives at that path."""


class _Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int = 0


class _Rendered(msgspec.Struct):
    token_ids: list[int]


class _Error(msgspec.Struct):
    message: str = ""
    param: str | None = None


class _ErrorReply(msgspec.Struct):
    error: _Error


_tokenized_of: Final = msgspec.json.Decoder(_Tokenized).decode
_rendered_of: Final = msgspec.json.Decoder(_Rendered).decode
_rendered_list_of: Final = msgspec.json.Decoder(list[_Rendered]).decode
_error_of: Final = msgspec.json.Decoder(_ErrorReply).decode
_object_of: Final = msgspec.json.Decoder(dict[str, Raw]).decode

_CONTAINER: Final = object()
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, ValueError)


def render_path(prompt: Prompt) -> str | None:
    """Where the prompt can be rendered; None where that would cost more than it gives.

    A body with several prompts would have all of them rendered, for the first one's sake.
    """
    if prompt.prompts > 1 or prompt.kind is PromptKind.TOKENS:
        return None
    return CHAT_RENDER_PATH if prompt.kind is PromptKind.CHAT else COMPLETION_RENDER_PATH


def tokenize_body(prompt: Prompt, *, exclude_tools: bool) -> bytes:
    """The body for `/tokenize`, JSON.

    A chat is the client's own body, byte for byte, unless a field must move. `exclude_tools`:
    the engines run with `--exclude-tools-when-tool-choice-none`.
    """
    if prompt.kind is PromptKind.CHAT:
        return _corrected_chat(prompt, exclude_tools)
    return msgspec.json.encode(
        {
            "model": prompt.model,
            "prompt": prompt.text,
            "add_special_tokens": prompt.add_special_tokens,
        }
    )


def _corrected_chat(prompt: Prompt, exclude_tools: bool) -> bytes:
    fields = prompt.fields
    changed = dict(fields)
    if exclude_tools and _value(fields, "tool_choice") == "none":
        changed.pop("tools", None)
    moved = _template_arguments(fields)
    if moved is not None:
        changed["chat_template_kwargs"] = Raw(_joined(moved))
    if changed == fields:
        return prompt.body
    return _joined(changed)


def _template_arguments(fields: Mapping[str, Raw]) -> dict[str, Raw] | None:
    """`chat_template_kwargs` with the fields that a chat adds to it, or None where none are.

    As vLLM 0.32 merges them: a top-level `reasoning_effort` or `documents` wins over the
    client's own entry of that name; `enable_thinking` follows from the effort only where the
    client does not set it.
    """
    added = {
        name: fields[name]
        for name in ("reasoning_effort", "documents")
        if _value(fields, name) not in (None, "auto")
    }
    if not added:
        return None
    try:
        given = _object_of(fields["chat_template_kwargs"])
    except KeyError:
        given = {}
    except _UNREADABLE:
        if _value(fields, "chat_template_kwargs") is not None:
            return None  # no object: the tokenizer refuses it as the engine will
        given = {}
    if len(given) > MAX_FIELDS:
        return None  # nothing that a template reads: not worth seconds of the event loop
    if "reasoning_effort" in added and "enable_thinking" not in given:
        thinks = _value(fields, "reasoning_effort") != "none"
        added["enable_thinking"] = Raw(b"true" if thinks else b"false")
    return given | added


def _joined(fields: Mapping[str, Raw]) -> bytes:
    """An object of slices; the values keep the client's bytes."""
    return b"{%b}" % b",".join(
        b"%b:%b" % (json.dumps(name).encode(), bytes(value)) for name, value in fields.items()
    )


def _value(fields: Mapping[str, Raw], name: str) -> object:
    """A field that is a scalar. A list or an object, megabytes of it perhaps, is not read."""
    if name not in fields:
        return None
    if bytes(memoryview(fields[name])[:1]) in (b"[", b"{"):
        return _CONTAINER
    try:
        return msgspec.json.decode(fields[name])
    except _UNREADABLE:
        return None


def read_tokenized(reply: bytes, prompt: Prompt) -> "array[int]":
    """The ids of a `/tokenize` reply, truncated as the engine will. Raises BadReply."""
    fast = native.tokenized(reply)
    if fast is not None:
        return truncated(fast[0], prompt, fast[1])
    try:
        parsed = _tokenized_of(reply)
    except _UNREADABLE:
        raise BadReply() from None
    return truncated(_ids(parsed.tokens), prompt, parsed.max_model_len)


def read_rendered(reply: bytes, prompt: Prompt) -> "array[int]":
    """The ids of a `/render` reply, exact as they are; of a list the first counts.

    Raises BadReply, and OtherReply where the JSON has another shape (older engines).
    """
    fast = native.rendered(reply, is_list=prompt.kind is not PromptKind.CHAT)
    if fast is not None:
        return fast
    try:
        if prompt.kind is PromptKind.CHAT:
            return _ids(_rendered_of(reply).token_ids)
        rendered = _rendered_list_of(reply)
    except msgspec.ValidationError:
        raise OtherReply() from None
    except _UNREADABLE:
        raise BadReply() from None
    if not rendered:
        raise OtherReply()
    return _ids(rendered[0].token_ids)


def is_model_error(reply: bytes) -> bool:
    """Whether a 404 means the model, and not the path.

    vLLM says `{"error": {"message": "The model `x` does not exist.", …}}` of a model, and
    `Not Found` of a path.
    """
    try:
        error = _error_of(reply).error
    except _UNREADABLE:
        return False
    return error.param == "model" or "model" in error.message.lower()


def truncated(ids: "array[int]", prompt: Prompt, max_model_len: int = 0) -> "array[int]":
    """What vLLM keeps of the prompt under `truncate_prompt_tokens`: the last k tokens.

    -1 keeps what the context length leaves beside the answer; where the length is not known
    (0) nothing is cut. Not exact for a text whose tokenizer puts special tokens in front: vLLM
    cuts between them and the text. Only `/render` knows that.
    """
    keep = prompt.truncate_prompt_tokens
    if keep == -1:
        keep = max_model_len - prompt.max_output_tokens if max_model_len else None
    if keep is None or keep < 0 or keep >= len(ids):
        return ids
    return ids[:keep] if prompt.truncate_keeps_first else ids[len(ids) - keep :]


def _ids(tokens: list[int]) -> "array[int]":
    try:
        return array("I", tokens)
    except OverflowError:
        raise BadReply() from None
