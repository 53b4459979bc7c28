"""Events give way to requests: the priority of the threads that read them.

Owns one call to the operating system. A burst of events is tens of milliseconds of CPU at once; a
few of them later no event is worse off, and a request is. Linux alone has priorities of threads.
"""

import contextlib
import os
import sys
import threading
from typing import Final

NICENESS: Final = 19
"""The lowest priority: whoever else wants the core comes first. Never nothing, though: against a
core that is always wanted it is a share of 1.5 %, and `aibrix_kv_source_lag_seconds` grows."""


def give_way() -> None:
    """Lower the priority of the calling thread for good; nothing where that cannot be."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
