"""Snapshots on disk: after a crash there is the old one or the new one, and never half of one.

Owns the file and its descriptor. Knows no record's meaning, no source and no clock.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.snapshot import format as layout
from aibrix_extproc.snapshot.format import Contents, Record, Refusal, SnapshotRefused

_BEFORE_RENAME: Final = ".part"
_LEFTOVER_AFTER_S: Final = 600.0


def check_path(path: Path, variable: str) -> None:
    """Whether a snapshot can be written there. Raises SettingsError that names the variable."""
    folder = path.parent
    if not folder.is_dir():
        raise SettingsError(f"{variable}: there is no folder {folder}: make it, or mount it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{variable}: this process may not write into {folder}")
    if path.exists() and not path.is_file():
        raise SettingsError(f"{variable}: {path} is no file: name one to be written")


def write(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file whole or not at all, and have it on the disk. Returns its bytes.

    Raises OSError, and what `parts` raises; the file is then as it was.
    """
    descriptor, name = tempfile.mkstemp(_BEFORE_RENAME, f".{path.name}.", path.parent)
    written = 0
    try:
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                written += file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _sync_folder(path.parent)
    return written


def remove_leftovers(path: Path, now: float) -> None:
    """Remove what a process that was killed while it wrote has left beside the file.

    `now` in seconds since the epoch: another process may be writing at this moment.
    """
    for leftover in path.parent.glob(f".{path.name}.*{_BEFORE_RENAME}"):
        with contextlib.suppress(OSError):
            if now - leftover.stat().st_mtime > _LEFTOVER_AFTER_S:
                leftover.unlink()


def _sync_folder(folder: Path) -> None:
    """The new name on the disk too; some file systems know no such call."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SnapshotFile:
    """A snapshot that was checked, and stays open: whoever replaces the file changes nothing."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads all of it once, from its start. Raises SnapshotRefused and closes it then."""
        self._file = file
        try:
            file.seek(0)
            self.contents: Contents = layout.read(file.read)
            self.size_bytes = file.tell()
        except OSError as error:
            file.close()
            raise SnapshotRefused(Refusal.UNREADABLE, f"it cannot be read: {error}") from None
        except SnapshotRefused:
            file.close()
            raise

    def export(self, record: Record) -> bytes:
        """One record's export. From any thread. Raises OSError, and ValueError once closed."""
        data = os.pread(self._file.fileno(), record.length, record.offset)
        if len(data) != record.length:
            raise OSError(f"{len(data)} of {record.length} bytes could be read")
        return data

    def close(self) -> None:
        """Harmless when called again."""
        self._file.close()


def open_snapshot(path: Path) -> SnapshotFile | None:
    """The snapshot at a path; None where there is none yet. Raises SnapshotRefused."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotRefused(Refusal.UNREADABLE, f"it cannot be read: {error}") from None
    return SnapshotFile(file)
