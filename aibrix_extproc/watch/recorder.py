"""Writes a recording: every message on a line of its own, at once, within a bound.

Owns the files. A line is given to the operating system with one call, so that whoever kills the
process costs a recording at most its last line. What cannot be written (a full disk) ends the
recording, with the line cut off again, and never the watching. Knows no source.
"""

import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.watch.recording import (
    LIVE_FILE,
    OLDER,
    answer_line,
    answers_beside,
    live_line,
)

MIN_LIMIT_BYTES: Final = 64 * 1024
_MODE: Final = 0o600
"""A recording holds token ids: whoever reads it can read prompts."""


class _File:
    """One file that lines are appended to, and its older half."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """`limit_bytes` of both halves; 0: none. Raises OSError."""
        self.path = path
        self._half_bytes = limit_bytes // 2
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
        self.regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        """False: a pipe or a device, which cannot be cut, and has nothing beside it."""
        self._size_bytes = 0

    def append(self, line: bytes) -> None:
        """Raises OSError; the file then ends with the line before."""
        full = self._half_bytes and self._size_bytes + len(line) > self._half_bytes
        if self.regular and full and self._size_bytes:
            self._begin_anew()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            if self.regular:
                os.ftruncate(self._descriptor, self._size_bytes)
            raise
        self._size_bytes += written

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin_anew(self) -> None:
        """What there is becomes the older half; what was that is gone."""
        self.path.replace(self.path.with_name(self.path.name + OLDER))
        os.close(self._descriptor)
        self._descriptor = -1
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        self._size_bytes = 0


class Recorder:
    """A recording under way: the live stream in one file, answers of replay ports beside it."""

    def __init__(self, path: Path, limit_bytes: int = 0) -> None:
        """`path` may be a folder. `limit_bytes` of all files together: the older half of each
        goes when it is full. 0: no bound.

        Raises SettingsError for a file that exists already or cannot be written.
        """
        if path.is_dir():
            path /= LIVE_FILE
        beside = answers_beside(path)
        if beside is None:
            raise SettingsError(f"--record: {path} is the name of replay answers: choose another")
        if limit_bytes and limit_bytes < MIN_LIMIT_BYTES:
            raise SettingsError(f"--limit-bytes: write {MIN_LIMIT_BYTES} (64KiB) or more")
        for one in (path, beside, path.with_name(path.name + OLDER)):
            if one.is_file():
                raise SettingsError(f"--record: {one} exists already: name another file")
        self._lock = threading.Lock()
        self._beside = beside
        self._half_bytes = limit_bytes // 2
        self._answers: _File | None = None
        self.lines = 0
        """Messages written."""
        self.stopped: str | None = None
        """Why nothing is written any more."""
        try:
            self._live = _File(path, self._half_bytes)
        except OSError as error:
            raise SettingsError(f"--record: {path}: {error.strerror}") from None
        if not self._live.regular:
            self._answers = self._live

    @property
    def path(self) -> Path:
        """The file of the live stream."""
        return self._live.path

    def live(self, t: float, source: str, frames: Sequence[bytes]) -> None:
        """A message of the live stream. From any thread; never raises OSError."""
        with self._lock:
            if self.stopped is None:
                self._append(self._live, live_line(t, source, frames))

    def answer(self, t: float, source: str, start: int, frames: Sequence[bytes]) -> None:
        """A message of the replay port that `source` was asked from `start` on."""
        with self._lock:
            if self.stopped is not None:
                return
            try:
                if self._answers is None:
                    self._answers = _File(self._beside, self._half_bytes)
            except OSError as error:
                self._stop(self._beside, error)
            else:
                self._append(self._answers, answer_line(t, source, start, frames))

    def close(self) -> None:
        """Harmless when called again."""
        with self._lock:
            self.stopped = self.stopped or "closed"
            self._close()

    def _append(self, file: _File, line: bytes) -> None:
        try:
            file.append(line)
        except OSError as error:
            self._stop(file.path, error)
        else:
            self.lines += 1

    def _stop(self, path: Path, error: OSError) -> None:
        self.stopped = f"the recording ended after {self.lines} messages: {path}: {error.strerror}"
        self._close()

    def _close(self) -> None:
        self._live.close()
        if self._answers is not None:
            self._answers.close()
