"""Traces of Mooncake (FAST '25): a session of one turn for each line.

Owns the format of the file. A trace names no sessions, so each line is one of its own.
"""

import json
from pathlib import Path
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn

MOONCAKE_BLOCK_TOKENS: Final = 512


def mooncake(path: Path, speed: float = 1.0, limit: int | None = None) -> list[Session]:
    """The first `limit` lines of a trace.

    `speed` 3 sends what the trace sends in 3 s within one. The prompt is its ids, 512 tokens each,
    cut at `input_length`. Raises SettingsError for a file that is no such trace.
    """
    sessions = []
    try:
        with path.open() as lines:
            for number, line in enumerate(lines):
                if limit is not None and number >= limit:
                    break
                if line.strip():
                    sessions.append(_session(json.loads(line), number, speed))
    except OSError as error:
        raise SettingsError(f"the trace {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"the trace {path}, line {number + 1}: {error!r}; expected timestamp (ms), "
            "input_length, output_length and hash_ids in each line"
        ) from None
    if not sessions:
        raise SettingsError(f"the trace {path} holds no request")
    return sessions


def _session(row: dict[str, object], number: int, speed: float) -> Session:
    ids = row["hash_ids"]
    if not isinstance(ids, list) or not ids:
        raise ValueError("hash_ids is no list of ids")
    length = min(_count(row["input_length"]), len(ids) * MOONCAKE_BLOCK_TOKENS)
    pieces, left = [], length
    for hash_id in ids:
        if left <= 0:
            break
        pieces.append(Piece(f"mooncake {hash_id}", min(left, MOONCAKE_BLOCK_TOKENS)))
        left -= MOONCAKE_BLOCK_TOKENS
    answer = Piece(f"answer {number}", _count(row["output_length"]))
    start_s = float(str(row["timestamp"])) / 1e3 / speed
    return Session(start_s, (Turn(tuple(pieces), answer),), f"mooncake-{number}")


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a length of {value!r} tokens")
    return value
