"""The workload: conversations and documents with shared prefixes, made from a seed.

Owns what is asked, in which order of conversations. Pure: the same shape and seed give the same
words anywhere. Knows no HTTP, and no answers: those become part of the next prompt as they come.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_SYLLABLES: Final = ("ba", "ce", "di", "fo", "gu", "ha", "ki", "lo", "mu", "ne", "po", "ra", "su")


@dataclass(frozen=True, slots=True)
class Shape:
    """How much is asked. Lengths are words, of which a tokenizer makes one or more tokens.

    Two kinds of traffic: chats of several turns, in groups that share a system prompt; and
    documents about which several unrelated questions are asked, one turn each.
    """

    chat_groups: int = 6
    chats_per_group: int = 4
    chat_turns: int = 5
    system_words: int = 150
    turn_words: int = 100
    documents: int = 6
    questions_per_document: int = 6
    document_words: int = 600
    question_words: int = 25
    answer_tokens: int = 32

    @property
    def requests(self) -> int:
        """Requests of the whole workload."""
        chats = self.chat_groups * self.chats_per_group * self.chat_turns
        return chats + self.documents * self.questions_per_document


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that follow each other: each is sent after the answer to the one before."""

    system: str
    """The system message, shared by every conversation of a group."""
    turns: tuple[str, ...]
    """The user's messages."""
    answer_tokens: int
    """The longest answer that is asked for."""


def build(shape: Shape, seed: int) -> tuple[Conversation, ...]:
    """All conversations, chats and documents mixed, in the order in which they begin."""
    rng = random.Random(f"aibrix_extproc workload {seed}")
    conversations = [*_chats(shape, rng), *_documents(shape, rng)]
    rng.shuffle(conversations)
    return tuple(conversations)


def at_least(requests: int) -> Shape:
    """The shape of the default proportions with the fewest groups that give `requests`."""
    one = Shape(chat_groups=1, documents=1)
    groups = max(1, -(-requests // one.requests))
    return Shape(chat_groups=groups, documents=groups)


def messages(conversation: Conversation, answers: Sequence[str]) -> list[dict[str, str]]:
    """The chat so far: the system message, the turns with their answers, and the next turn."""
    chat = [{"role": "system", "content": conversation.system}]
    for turn, answer in zip(conversation.turns, answers, strict=False):
        chat.append({"role": "user", "content": turn})
        chat.append({"role": "assistant", "content": answer})
    chat.append({"role": "user", "content": conversation.turns[len(answers)]})
    return chat


def _chats(shape: Shape, rng: random.Random) -> Iterator[Conversation]:
    for _ in range(shape.chat_groups):
        system = _text(rng, shape.system_words)
        for _ in range(shape.chats_per_group):
            turns = tuple(_text(rng, shape.turn_words) for _ in range(shape.chat_turns))
            yield Conversation(system, turns, shape.answer_tokens)


def _documents(shape: Shape, rng: random.Random) -> Iterator[Conversation]:
    for _ in range(shape.documents):
        document = _text(rng, shape.document_words)
        for _ in range(shape.questions_per_document):
            question = _text(rng, shape.question_words)
            yield Conversation(document, (question,), shape.answer_tokens)


def _text(rng: random.Random, words: int) -> str:
    return " ".join("".join(rng.choices(_SYLLABLES, k=2)) for _ in range(words))
