"""A prompt as a row of pieces, so that two prompts can be compared from their beginning.

Pure. Owns what counts as "the same beginning": everything that decides tokens beside the text
(the frame: model, tools, template arguments, unknown fields) must be equal as bytes, and then
piece after piece. It knows no token.

A message becomes one or several pieces. *Plain* messages, `{"role", "content"}` with a text for
content, of a role whose text no known template alters, are cut into chunks of CHUNK_BYTES: where
two of them differ it is known by how much they agree. All others (an assistant's answer, tool
calls, parts, fields of a client's own) are one opaque piece: equal as bytes or not at all. A text
prompt is one plain message.

A text with white space at either end is opaque: templates trim it, so that two such texts may
differ in bytes and not in tokens.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import xxhash
from msgspec import Raw

from aibrix_extproc.extproc.prompts import NOT_PROMPT, Prompt, PromptKind

KEY_BYTES: Final = 16

CHUNK_BYTES: Final = 2048
"""Of a plain text's pieces: a prompt of 100,000 tokens has some 200 of them."""

MAX_PIECES: Final = 4096
"""A prompt of more pieces is left alone, lest one request hold up the others."""

TEXT_ROLE: Final = "text"
"""Role of a text prompt's single message."""

_PLAIN_ROLES: Final = frozenset({"user", "system", "developer"})
_PLAIN_FIELDS: Final = frozenset({"role", "content"})
_SEED: Final = secrets.randbits(64)  # a client cannot prepare two prompts with one key

_messages_of: Final = msgspec.json.Decoder(list[Raw]).decode
_fields_of: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_text_of: Final = msgspec.json.Decoder(str).decode
_UNREADABLE: Final = (msgspec.DecodeError, RecursionError, ValueError)

_WORD_BORDER: Final = re.compile(rb"[A-Za-z] (?=[A-Za-z])")


class Piece(msgspec.Struct, eq=False, gc=False):
    """A part of one message. Not visited by the garbage collector: see `recollection`."""

    key: bytes
    """Digest of the frame and of all pieces up to and including this one."""
    message: int
    role: str
    text: bytes | None
    """UTF-8 of a plain message's chunk; None: opaque."""
    size_bytes: int
    is_last: bool
    """It ends its message."""


@dataclass(frozen=True, slots=True)
class Outline:
    """One prompt."""

    frame: bytes
    """Digest of everything but the messages or the text."""
    frame_bytes: int
    """Length of the tools, which are in the prompt too."""
    pieces: tuple[Piece, ...]
    messages: int
    last_user: int
    """Index of the last message of the role `user`; -1: none."""
    last_role: str
    last_message: int
    """Digest of the last message alone."""
    is_text: bool
    """A text prompt, which no template changes."""

    @property
    def size_bytes(self) -> int:
        return self.frame_bytes + sum(piece.size_bytes for piece in self.pieces)

    def key_at(self, pieces: int) -> bytes:
        """What names the first so many pieces."""
        return self.pieces[pieces - 1].key if pieces else self.frame


def outline(prompt: Prompt) -> Outline | None:
    """The prompt's outline; None where nothing can be said of a part of it.

    That is: ids already; cut by `truncate_prompt_tokens`; messages that cannot be read; too many
    pieces.
    """
    if prompt.kind is PromptKind.TOKENS or prompt.truncate_prompt_tokens is not None:
        return None
    if prompt.kind is PromptKind.COMPLETION:
        return _text_outline(prompt)
    try:
        messages = _messages_of(prompt.fields["messages"])
        return _chat_outline(prompt, [memoryview(message) for message in messages])
    except (KeyError, *_UNREADABLE):
        return None


def settled(text: bytes, end: int) -> int:
    """How many bytes of `text[:end]` are settled: no merge reaches over that border.

    A border is an ASCII letter, one space, and a letter: tokenizers part words there, whatever
    comes later (byte-level BPE before the space, SentencePiece too). 0 where there is none, as
    in a script without spaces.
    """
    border = 0
    for found in _WORD_BORDER.finditer(text, max(0, end - 256), max(0, end)):
        border = found.start() + 1
    if border or end <= 256:
        return border
    for found in _WORD_BORDER.finditer(text, 0, end):
        border = found.start() + 1
    return border


def _text_outline(prompt: Prompt) -> Outline | None:
    assert prompt.text is not None  # noqa: S101 - a completion has one
    text = prompt.text.encode("utf-8", "surrogatepass")
    frame = _frame(prompt, "prompt")
    pieces = _Row(frame)
    pieces.add_text(0, TEXT_ROLE, text)
    if len(pieces.row) > MAX_PIECES:
        return None
    digest = xxhash.xxh3_64_intdigest(text, _SEED)
    return Outline(frame, 0, tuple(pieces.row), 1, -1, TEXT_ROLE, digest, True)


def _chat_outline(prompt: Prompt, messages: Sequence[memoryview]) -> Outline | None:
    if not messages or len(messages) > MAX_PIECES:
        return None
    frame = _frame(prompt, "messages")
    pieces = _Row(frame)
    last_user, role = -1, ""
    for index, raw in enumerate(messages):
        fields = _fields_of(raw)
        role = _role(fields)
        if role == "user":
            last_user = index
        text = _plain_text(role, fields)
        if text is None:
            pieces.add_opaque(index, role, raw)
        else:
            pieces.add_text(index, role, text)
    if len(pieces.row) > MAX_PIECES:
        return None
    tools = prompt.fields.get("tools")
    tools_bytes = len(memoryview(tools)) if tools is not None else 0
    digest = xxhash.xxh3_64_intdigest(messages[-1], _SEED)
    row, count = tuple(pieces.row), len(messages)
    return Outline(frame, tools_bytes, row, count, last_user, role, digest, False)


class _Row:
    """The pieces of a prompt, as they are added."""

    def __init__(self, frame: bytes) -> None:
        self.row: list[Piece] = []
        self._key = frame

    def add_text(self, message: int, role: str, text: bytes) -> None:
        size = max(1, len(text))
        for start in range(0, size, CHUNK_BYTES):
            chunk = text[start : start + CHUNK_BYTES]
            self._add(message, role, chunk, chunk, is_last=start + CHUNK_BYTES >= size)

    def add_opaque(self, message: int, role: str, raw: memoryview) -> None:
        self._add(message, role, None, raw, is_last=True)

    def _add(
        self, message: int, role: str, text: bytes | None, data: "bytes | memoryview", is_last: bool
    ) -> None:
        kind = b"plain " if text is not None else b"opaque "
        label = kind + role.encode("utf-8", "surrogatepass") + (b" end" if is_last else b" more")
        digest = xxhash.xxh3_128(self._key, seed=_SEED)
        digest.update(b"%d:%b%d:" % (len(label), label, len(data)))
        digest.update(data)
        self._key = digest.digest()
        self.row.append(Piece(self._key, message, role, text, len(data), is_last))


def _frame(prompt: Prompt, text_field: str) -> bytes:
    """Digest of all fields but the text itself and those that never decide tokens."""
    head = f"{prompt.kind} {prompt.add_special_tokens}".encode()
    digest = xxhash.xxh3_128(head, seed=_SEED)
    for name in sorted(prompt.fields):
        if name in NOT_PROMPT or name == text_field:
            continue
        value = memoryview(prompt.fields[name])
        label = name.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b%d:" % (len(label), label, len(value)))
        digest.update(value)
    return digest.digest()


def _role(fields: Mapping[str, Raw]) -> str:
    return _text_of(fields["role"])


def _plain_text(role: str, fields: Mapping[str, Raw]) -> bytes | None:
    if role not in _PLAIN_ROLES or fields.keys() != _PLAIN_FIELDS:
        return None
    content = fields["content"]
    if bytes(memoryview(content)[:1]) != b'"':
        return None
    text = _text_of(content)
    if not text or text != text.strip():
        return None
    return text.encode("utf-8", "surrogatepass")
