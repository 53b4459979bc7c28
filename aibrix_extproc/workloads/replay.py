"""Requests as a file gives them: JSON lines of times and the words themselves.

Owns the format. A line is one request, sent at its time whatever became of those before it, also
of its own session: what was answered when the file was recorded stands in the messages already.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

_ASKED: Final = ("messages", "prompt")
_BODY: Final = (*_ASKED, "tools")
_KNOWN: Final = frozenset(("time", "max_tokens", "session", *_BODY))
_LONGEST_SESSION: Final = 128


def replay(path: Path, speed: float = 1.0, limit: int | None = None) -> list[Session]:
    """The first `limit` lines of a file, in the order of their times.

    Each line is an object: `time` (seconds since any moment; the earliest line is sent at once, and
    lines may stand in any order), `messages` (a chat) or `prompt` (a completion: a text or token
    ids), `max_tokens`, and where wanted `session` (a name; without it a line is a session of its
    own) and `tools`. `speed` 3 sends what the file sends in 3 s within one. Raises SettingsError
    that names the line.
    """
    sessions: list[Session] = []
    try:
        with path.open() as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(sessions) >= limit:
                    break
                if line.strip():
                    sessions.append(_session(_object(line), number, speed))
    except OSError as error:
        raise SettingsError(f"the file {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"the file {path}, line {number}: {error}") from None
    if not sessions:
        raise SettingsError(f"the file {path} holds no request")
    first_s = min(session.start_s for session in sessions)
    moved = (replace(session, start_s=session.start_s - first_s) for session in sessions)
    return sorted(moved, key=lambda session: session.start_s)


def _object(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    if unknown := sorted(row.keys() - _KNOWN):
        known = ", ".join(sorted(_KNOWN))
        raise ValueError(f"unknown field {', '.join(unknown)}; known are {known}")
    return row


def _session(row: Mapping[str, Any], number: int, speed: float) -> Session:
    at_s, tokens = row.get("time"), row.get("max_tokens")
    if not isinstance(at_s, int | float) or isinstance(at_s, bool) or not 0 <= at_s < float("inf"):
        raise ValueError(f"`time` is {at_s!r}, and should be seconds, 0 or more")
    if type(tokens) is not int or tokens < 1:
        raise ValueError(f"`max_tokens` is {tokens!r}, and should be 1 or more")
    _check_asked(row)
    recorded = {name: row[name] for name in _BODY if name in row}
    turn = Turn((), Piece(f"answer {number}", tokens), recorded=recorded)
    return Session(at_s / speed, (turn,), _session_id(row.get("session"), number))


def _check_asked(row: Mapping[str, Any]) -> None:
    given = [name for name in _ASKED if name in row]
    if len(given) != 1:
        raise ValueError("exactly one of `messages` and `prompt` is needed")
    asked = row[given[0]]
    if given == ["messages"]:
        if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
            raise ValueError("`messages` is no list of messages")
    elif not isinstance(asked, str) and not _token_ids(asked):
        raise ValueError("`prompt` is neither a text nor token ids")
    if not asked:
        raise ValueError(f"`{given[0]}` is empty")


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _session_id(value: object, number: int) -> str:
    if value is None:
        return f"replay-{number}"
    if not isinstance(value, str) or not value or len(value) > _LONGEST_SESSION:
        raise ValueError(f"`session` is {value!r}, and should be 1 to {_LONGEST_SESSION} letters")
    if not (value.isascii() and value.isprintable()):
        raise ValueError("`session` goes into a header: printable ASCII only")
    return value
