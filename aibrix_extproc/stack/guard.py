"""Runs a command that dies with its parent, whatever ends the parent.

Run by path: `python -I -S guard.py PARENT_PID COMMAND …`. On Linux the kernel kills the command
when the thread that started it ends, SIGKILL of the parent included; the order survives exec.
Elsewhere the command is run without that promise. Imports nothing of the package.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Bind this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the order was given
        sys.exit("the parent is gone")
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
