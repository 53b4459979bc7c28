"""The fake engine's tokenizer and chat template: deterministic, and the same in every engine.

Owns how text becomes token ids and how answers are made. Knows no HTTP. About one token per
short word or per 6 letters. A text that begins like another has tokens that begin alike, up to
the word where they part. The text of a generated answer tokenizes to the ids that it was
generated as, so that the next turn of a chat finds the answer in the cache.

The template is in the manner of Llama 3: begin-of-text, then per message a role header, the
content and an end-of-turn.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Protocol

import xxhash

BOS: Final = 0
START_HEADER: Final = 2
END_HEADER: Final = 3
END_OF_TURN: Final = 4
_FIRST_WORD: Final = 16
"""Ids below are special tokens; no text becomes one."""

_PIECE: Final = re.compile(r" ?\w{1,6}|\s{1,4}|[^\w\s]{1,2}")
_CACHED_PIECES: Final = 200_000
_LONG_TEXT: Final = 1_000
"""Letters. The ids of longer texts are kept: system prompts come again and again."""
_CACHED_IDS: Final = 2_000_000
"""Of all long texts together, 16 MB."""

_ONSETS: Final = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
_VOWELS: Final = ("a", "e", "i", "o", "u")


class BadPrompt(ValueError):
    """The prompt cannot be templated; the message goes to the client with status 400."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What decides the tokens of a chat, after an endpoint has read it from a body."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template; `documents`, `reasoning_effort` and `enable_thinking` show."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False


class Tokenizer(Protocol):
    """What the engine needs. Tests put the tokens of a recording in its place."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, after the begin-of-text token where special tokens are added."""

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        """The ids of a templated chat. Raises BadPrompt."""

    def answer(self, prompt: Sequence[int]) -> Iterator[int]:
        """The ids of the answer to a prompt, without an end."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated ids."""


class WordTokenizer:
    """Ids by the hash of each piece of text. Engines with equal `vocab_size` agree."""

    def __init__(self, vocab_size: int = 128_256, answer_words: int = 400) -> None:
        if vocab_size < 10 * answer_words:
            raise ValueError("the vocabulary is too small for the words of the answers")
        self._range = vocab_size - _FIRST_WORD
        self._pieces: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._long: dict[str, list[int]] = {}
        self._long_ids = 0
        self._first, self._following = self._answer_vocabulary(answer_words)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """See `Tokenizer`."""
        ids = [BOS] if add_special_tokens else []
        ids += self._ids(text) if len(text) < _LONG_TEXT else self._long_text(text)
        return ids

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        """See `Tokenizer`."""
        if chat.continue_final_message and chat.add_generation_prompt:
            raise BadPrompt(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            )
        ids = [BOS, BOS] if chat.add_special_tokens else [BOS]
        preamble = _preamble(chat)
        if preamble:
            ids += self._turn("system", preamble)
        for message in chat.messages:
            ids += self._turn(str(message.get("role", "")), _content(message))
        if chat.continue_final_message and chat.messages:
            ids.pop()
        if chat.add_generation_prompt:
            ids += self._header("assistant")
        return ids

    def answer(self, prompt: Sequence[int]) -> Iterator[int]:
        """See `Tokenizer`. Depends on the prompt alone."""
        seed = xxhash.xxh3_64_intdigest(repr((len(prompt), prompt[-64:])).encode())
        words = len(self._first)
        for position in count():
            choice = (seed + position * 2654435761 + (position * seed >> 17)) % words
            yield (self._following if position else self._first)[choice]

    def decode(self, token_ids: Sequence[int]) -> str:
        """See `Tokenizer`. An id that no answer has is an empty text."""
        return "".join(self._texts.get(token, "") for token in token_ids)

    def _turn(self, role: str, content: str) -> list[int]:
        return [*self._header(role), *self.encode(content, False), END_OF_TURN]

    def _header(self, role: str) -> list[int]:
        return [
            START_HEADER,
            *self.encode(role, False),
            END_HEADER,
            *self.encode("\n\n", False),
        ]

    def _ids(self, text: str) -> list[int]:
        return list(map(self._id, _PIECE.findall(text)))

    def _long_text(self, text: str) -> list[int]:
        known = self._long.get(text)
        if known is None:
            known = self._long[text] = self._ids(text)
            self._long_ids += len(known)
            while self._long_ids > _CACHED_IDS and len(self._long) > 1:
                self._long_ids -= len(self._long.pop(next(iter(self._long))))
        return known

    def _id(self, piece: str) -> int:
        known = self._pieces.get(piece)
        if known is None:
            if len(self._pieces) >= _CACHED_PIECES:
                self._pieces.clear()
            digest = xxhash.xxh3_64_intdigest(piece.encode("utf-8", "surrogatepass"))
            known = self._pieces[piece] = _FIRST_WORD + digest % self._range
        return known

    def _answer_vocabulary(self, words: int) -> tuple[list[int], list[int]]:
        """Ids of words as an answer's first token, and the same words after a space."""
        first: list[int] = []
        following: list[int] = []
        for word in _words():
            pair = (word, f" {word}")
            ids = [self._id(piece) for piece in pair]
            if any(token in self._texts for token in ids) or ids[0] == ids[1]:
                continue
            self._texts.update(zip(ids, pair, strict=True))
            first.append(ids[0])
            following.append(ids[1])
            if len(first) == words:
                break
        return first, following


def _words() -> Iterator[str]:
    """Short made-up words, each a single piece of text."""
    syllables = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    for first in syllables:
        for second in syllables:
            yield first + second


def _preamble(chat: ChatPrompt) -> str:
    """What the template writes before the first message: thinking, documents, tools."""
    kwargs = chat.template_kwargs
    lines = []
    if kwargs.get("enable_thinking"):
        lines.append(f"Think. Effort: {kwargs.get('reasoning_effort', 'default')}.")
    if kwargs.get("documents"):
        lines.append(f"Documents: {_compact(kwargs['documents'])}")
    if chat.tools:
        lines.append(f"Tools: {_compact(chat.tools)}")
    shown = {"enable_thinking", "reasoning_effort", "documents"}
    others = {name: value for name, value in kwargs.items() if name not in shown}
    if others:
        lines.append(f"Settings: {_compact(others)}")
    return "\n".join(lines)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        text = "\n".join(_part_text(part) for part in content)
    elif content is None or isinstance(content, str):
        text = content or ""
    else:
        raise BadPrompt("`content` is neither a string nor a list of parts")
    calls = message.get("tool_calls")
    return f"{text}{_compact(calls)}" if calls else text


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise BadPrompt(f"This engine takes text; a content part is `{kind}`.")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
