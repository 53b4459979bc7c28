"""The requests of one session, as bodies of HTTP, each with what was really answered before it.

Owns the way from pieces to messages. A message's words are made once; a later turn adds to what
was said. Knows no clock and no socket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from aibrix_extproc.loadtest.client import CHATS, COMPLETIONS
from aibrix_extproc.loadtest.words import words_of
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

OPENING_TOKENS: Final = 6
"""What the fake engine's template writes around the messages: begin-of-text, and the header of the
answer."""
MESSAGE_TOKENS: Final = 5
"""And around a message of the system or a user. An answer, whose header stood in the prompt
before, has its end alone: 1."""


@dataclass(frozen=True, slots=True)
class Style:
    """What all requests of a run have in common."""

    model: str
    salt: str = ""
    """Another salt, other words: what one run left in the caches is nothing to the next."""
    ignore_eos: bool = False
    """Ask for answers of full length (vLLM's `ignore_eos`)."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to send."""

    path: str
    body: bytes


class Talk:
    """One session. Call `ask` and, once it is answered, `heard`; as often as it has turns."""

    def __init__(self, session: Session, style: Style) -> None:
        self._session = session
        self._style = style
        self._messages: list[bytes] = []
        self._said_pieces = 0
        self._turn = 0

    def ask(self) -> Ask:
        """The next request. By the fake engine's tokenizer its prompt has exactly the tokens that
        the turn wants, where it wants more than the template takes and the answers had their
        length; by others about as many."""
        turn = self._session.turns[self._turn]
        if turn.recorded is not None:
            return self._recorded(turn, turn.recorded)
        system = self._session.system_pieces if not self._messages else 0
        around = MESSAGE_TOKENS + (OPENING_TOKENS + MESSAGE_TOKENS * bool(system))
        pieces = turn.prompt[self._said_pieces :]
        if system:
            self._add("system", pieces[:system])
        self._add("user", _shortened(pieces[system:], around))
        self._said_pieces = len(turn.prompt)
        body = b"".join(
            (
                self._start(),
                b'"messages":[',
                b",".join(self._messages),
                b"],",
                self._end(turn.answer.tokens),
            )
        )
        return Ask(CHATS, body)

    def heard(self, answer: str) -> None:
        """What was answered to the last request; nothing, where it failed."""
        self._turn += 1
        self._said_pieces += 1
        self._messages.append(
            b'{"role":"assistant","content":' + msgspec.json.encode(answer) + b"}"
        )

    def _add(self, role: str, pieces: Sequence[Piece]) -> None:
        text = b"".join(words_of(piece, self._style.salt) for piece in pieces)[1:]
        self._messages.append(b'{"role":"%s","content":"%s"}' % (role.encode(), text))

    def _recorded(self, turn: Turn, fields: Mapping[str, Any]) -> Ask:
        given = msgspec.json.encode(fields)[1:-1] + b","
        body = b"".join((self._start(), given, self._end(turn.answer.tokens)))
        return Ask(CHATS if "messages" in fields else COMPLETIONS, body)

    def _start(self) -> bytes:
        return b'{"model":' + msgspec.json.encode(self._style.model) + b","

    def _end(self, answer_tokens: int) -> bytes:
        full = b',"ignore_eos":true' if self._style.ignore_eos else b""
        return (
            b'"max_tokens":%d,"temperature":0,"stream":true,"stream_options":{"include_usage":true}'
            b"%s}" % (answer_tokens, full)
        )


def _shortened(pieces: Sequence[Piece], tokens: int) -> Sequence[Piece]:
    """The last one without as many tokens; one token of it stays."""
    last = pieces[-1]
    return [*pieces[:-1], replace(last, tokens=max(1, last.tokens - tokens))]
