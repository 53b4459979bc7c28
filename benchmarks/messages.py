"""Files of messages, and what a process takes. Needs nothing but the standard library."""

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

Message = tuple[int, bytes]
"""(source, payload)."""
_RECORD: Final = struct.Struct("<II")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def write_messages(path: Path, messages: Iterator[Message]) -> None:
    """Source, length, payload; one after another."""
    with path.open("wb") as file:
        for source, payload in messages:
            file.write(_RECORD.pack(source, len(payload)) + payload)


def read_messages(path: str) -> Iterator[Message]:
    with open(path, "rb") as file:
        while head := file.read(_RECORD.size):
            source, length = _RECORD.unpack(head)
            yield source, file.read(length)


def rss_bytes(process: int | str = "self") -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES


def cpu_seconds(process: int) -> float:
    """User and system time of another process with all of its threads, in ticks of 10 ms."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def on_one_core(command: list[str]) -> list[str]:
    """The command, held to the last core, so that a peer's threads share one as ours do.

    As it is where there is no `taskset`.
    """
    taskset = shutil.which("taskset")
    core = max(os.sched_getaffinity(0)) if taskset else 0
    return [taskset, "-c", str(core), *command] if taskset else command
