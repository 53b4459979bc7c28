"""The format of a recording: JSON lines, one for each ZMQ message, and how they are read.

Owns the fields, which are those of the recordings under `tests/data/vllm`:

| field | meaning |
|---|---|
| `t` | when it was received, seconds since the epoch |
| `src` | the source; `replay_from_N` for a message of the replay port (`replay_…`: from 0) |
| `frames_hex` | the message's frames, each in hex: what was received, byte for byte |
| `topic`, `seq` | read from the frames; left out where they are none of a batch |
| `request_hex` | only of the replay port: the question, frame by frame |
| `of` | only of the replay port: the source that was asked |
| `vllm` | of a collection of recordings: the engine's version; each is a source of its own |

A reader needs `t` and `frames_hex`; `seq` and `payload` in hex may stand for the frames. Fields
that are not known are ignored. Knows no source, no socket, and no file but to read it.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aibrix_extproc.errors import ExtprocError
from aibrix_extproc.kvevents.wire import (
    END_OF_REPLAY,
    SEQUENCE_BYTES,
    BadFrames,
    ReplayBatch,
    parse_live,
    parse_replay,
    replay_request,
)

LIVE_FILE: Final = "frames.jsonl"
REPLAY_FILE: Final = "replay.jsonl"
ENDINGS: Final = ("", ".gz")
OLDER: Final = ".1"
"""Added to the name of a recording's older half."""

_GZIP: Final = b"\x1f\x8b"
_REPLAY: Final = "replay_"
_ASKED: Final = "replay_from_"
_NO_NAME: Final = "v0"
_LATEST_S: Final = 1e11
"""The year 5138: what is beyond it is no time, and no clock can show it."""


class BadRecording(ExtprocError):
    """A recording that cannot be read; the message names it and says why."""


class _NoLine(ValueError):
    """A line that is no record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it was received."""

    t: float
    """Seconds since the epoch."""
    source: str
    """Its `src`, after the version where there is one; `replay_from_0` of an answer."""
    frames: tuple[bytes, ...]
    asked: int | None = None
    """Of the replay port: the question was for every batch with sequence ≥ this. None: live."""
    of: str | None = None
    """Of the replay port: the source that was asked, where it is told."""
    version: str | None = None
    """Of a collection: the engine's."""

    @property
    def ends_answer(self) -> bool:
        """It is the end marker of a replay."""
        return self.asked is not None and self.frames[-2:-1] == (END_OF_REPLAY,)


# -- writing --------------------------------------------------------------------------------------


def live_line(t: float, source: str, frames: Sequence[bytes]) -> bytes:
    """The line of a message of the live stream, with its end of line."""
    try:
        batch = parse_live(frames)
        known: dict[str, Any] = {"topic": batch.topic, "seq": batch.sequence}
    except BadFrames:
        known = {}
    return _line({"t": t, "src": source, "frames_hex": _hexed(frames), **known})


def answer_line(t: float, source: str, start: int, frames: Sequence[bytes]) -> bytes:
    """The line of a message of the replay port, which `source` was asked from `start` on."""
    try:
        reply = parse_replay(frames)
        known = {"seq": reply.sequence if isinstance(reply, ReplayBatch) else -1}
    except BadFrames:
        known = {}
    return _line(
        {
            "t": t,
            "src": f"{_ASKED}{start}",
            "frames_hex": _hexed(frames),
            **known,
            "request_hex": _hexed(replay_request(start)),
            "of": source,
        }
    )


def _hexed(frames: Sequence[bytes]) -> list[str]:
    return [frame.hex() for frame in frames]


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


# -- reading --------------------------------------------------------------------------------------


def parse_record(line: bytes) -> Record:
    """One line. Raises ValueError for one that is no record."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise _NoLine("no object")
    t = fields.get("t")
    if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 <= t <= _LATEST_S:
        raise _NoLine("no time `t`")
    source = str(fields.get("src", _NO_NAME))
    of, version = _text(fields.get("of")), _text(fields.get("vllm"))
    name = source if version is None else f"{version} {source}"
    return Record(float(t), name, _frames(fields), _asked(fields, source), of, version)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _frames(fields: dict[str, Any]) -> tuple[bytes, ...]:
    frames = fields.get("frames_hex")
    if isinstance(frames, list) and frames and all(isinstance(one, str) for one in frames):
        return tuple(bytes.fromhex(one) for one in frames)
    payload, number = fields.get("payload"), fields.get("seq")
    if isinstance(payload, str) and isinstance(number, int) and 0 <= number < 2**64:
        return (b"", number.to_bytes(SEQUENCE_BYTES, "big"), bytes.fromhex(payload))
    raise _NoLine("no `frames_hex`")


def _asked(fields: dict[str, Any], source: str) -> int | None:
    request = fields.get("request_hex")
    if isinstance(request, list) and request and isinstance(request[-1], str):
        return int.from_bytes(bytes.fromhex(request[-1]), "big")
    if source.startswith(_ASKED) and source[len(_ASKED) :].isdecimal():
        return int(source[len(_ASKED) :])
    return 0 if source.startswith(_REPLAY) else None


@dataclass(slots=True)
class Reading:
    """One file while it is read: an iterator over its records, in their order."""

    path: Path
    records: int = 0
    damaged: int = 0
    """Lines that are no record, and were skipped."""
    cut_off: bool = False
    """The last line is no record: whoever wrote it was stopped while it did."""

    def __iter__(self) -> Iterator[Record]:
        """Raises BadRecording where the file cannot be read, or holds no record at all."""
        try:
            yield from self._read()
        except (OSError, EOFError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadRecording(f"{self.path} cannot be read: {why}") from None
        if not self.records:
            raise BadRecording(f"{self.path} is no recording: no line of it has `frames_hex`")

    def _read(self) -> Iterator[Record]:
        zipped = self.path.open("rb").read(2) == _GZIP
        with gzip.open(self.path) if zipped else self.path.open("rb") as lines:
            self.cut_off = False
            for line in lines:
                if self.cut_off:
                    self.damaged += 1
                try:
                    record = parse_record(line)
                except (ValueError, RecursionError):
                    self.cut_off = bool(line.strip())
                    continue
                self.cut_off = False
                self.records += 1
                yield record

    @property
    def said(self) -> str | None:
        """What was skipped, for people; None where nothing was."""
        parts = []
        if self.damaged:
            parts.append(f"{self.damaged} damaged lines are skipped")
        if self.cut_off:
            parts.append("its last line is cut off and skipped")
        return f"{self.path.name}: {', '.join(parts)}" if parts else None


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one recording, each older half before its file."""

    live: tuple[Path, ...]
    """Of the stream; or of whatever one file holds."""
    answers: tuple[Path, ...]
    """Of the replay port, in files of their own."""


def files_of(path: Path) -> Files:
    """The files that a recording consists of: a folder's `frames` and `replay`, or one file.

    The answers of the replay port beside a live file belong to it. Raises BadRecording where
    there is none.
    """
    if path.is_dir():
        found = Files(_with_older(path / LIVE_FILE), _with_older(path / REPLAY_FILE))
        if not found.live and not found.answers:
            raise BadRecording(f"{path} holds neither {LIVE_FILE} nor {REPLAY_FILE}")
        return found
    if not path.exists():
        raise BadRecording(f"{path}: there is no such file or folder")
    older = path.with_name(path.name + OLDER)
    beside = answers_beside(path)
    live = (older, path) if older.exists() else (path,)
    return Files(live, _with_older(beside) if beside else ())


def answers_beside(live: Path) -> Path | None:
    """Where the answers that belong to a live file are: `replay.jsonl` beside `frames.jsonl`,
    `x.replay.jsonl` beside `x.jsonl`. None for what is such a file itself."""
    name = live.name.removesuffix(".gz")
    if name == REPLAY_FILE or name.endswith(f".{REPLAY_FILE}"):
        return None
    if name == LIVE_FILE:
        return live.with_name(REPLAY_FILE)
    return live.with_name(f"{name.removesuffix('.jsonl')}.{REPLAY_FILE}")


def _with_older(path: Path) -> tuple[Path, ...]:
    names = [path.name + OLDER, *(path.name + ending for ending in ENDINGS)]
    return tuple(path.with_name(name) for name in names if path.with_name(name).is_file())
