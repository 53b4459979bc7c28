"""How busy the generator's own process and its machine were during a run."""

import os
import time
from pathlib import Path
from typing import Final

_STAT: Final = Path("/proc/stat")
_IDLE: Final = (3, 4)
"""The columns of /proc/stat's first line after its name: idle, and waiting for a disk."""


class CpuUse:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._process_s = time.process_time()
        self._at_s = time.perf_counter()
        self._machine = _machine()

    def generator_share(self) -> float:
        """CPU time of this process by the time that passed."""
        passed_s = time.perf_counter() - self._at_s
        return (time.process_time() - self._process_s) / passed_s if passed_s else 0.0

    def machine_share(self) -> float | None:
        """Of all cores, busy with anything, 0 to 1; None where the system does not tell."""
        now, before = _machine(), self._machine
        if now is None or before is None or now[1] == before[1]:
            return None
        return (now[0] - before[0]) / (now[1] - before[1])


def _machine() -> tuple[int, int] | None:
    """Busy and all ticks of the machine since it started; None where it is no Linux."""
    try:
        ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - sum(ticks[place] for place in _IDLE), sum(ticks)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
