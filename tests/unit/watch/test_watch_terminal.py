"""The real command on a real pseudo-terminal: what is drawn, the keys, and how it is given back."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

from aibrix_extproc.watch.recording import live_line
from tests.kv_publisher import KvPublisher, payload_of, stored
from tests.support import data_path

_LEAVE_SCREEN = b"\x1b[?1049l"
_SHOW_CURSOR = b"\x1b[?25h"


class Terminal:
    """A command on a terminal of its own, read by an emulator."""

    def __init__(self, columns: int, rows: int, *arguments: str) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self.exit_code: int | None = None
        command = [sys.executable, "-m", "aibrix_extproc.cli", "watch", *arguments]
        self.master, self._slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.master)
        self._pid = self._spawn(command)

    def _spawn(self, command: list[str]) -> int:
        clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        pid = os.fork()
        if pid == 0:
            os.login_tty(self._slave)
            os.execve(command[0], command, clean | {"TERM": "xterm-256color"})
        return pid

    def read(self, seconds: float) -> None:
        """What arrives within this time; less where something does."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            with contextlib.suppress(OSError):
                said = os.read(self.master, 65_536)
                self.written += said
                self._stream.feed(said)

    def until(self, check: Callable[["Terminal"], bool], timeout_s: float = 30.0) -> "Terminal":
        deadline = time.monotonic() + timeout_s
        while not check(self):
            assert time.monotonic() < deadline, (
                f"never drawn:\n{self.text}\n{self.written[-500:]!r}"
            )
            self.read(0.05)
        return self

    def shows(self, words: str) -> "Terminal":
        return self.until(lambda terminal: words in terminal.text)

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def signal(self, number: int) -> None:
        os.kill(self._pid, number)

    def ended(self) -> int:
        """The exit code, once it has ended."""

        def gone(terminal: "Terminal") -> bool:
            if self.exit_code is None:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid:
                    self.exit_code = os.waitstatus_to_exitcode(status)
            return self.exit_code is not None

        self.until(gone)
        while select.select([self.master], [], [], 0)[0]:
            self.read(0)
        assert self.exit_code is not None
        return self.exit_code

    def close(self) -> None:
        if self.exit_code is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def opened(*arguments: str, size: tuple[int, int] = (80, 24)) -> Terminal:
        terminals.append(Terminal(*size, *arguments))
        return terminals[-1]

    yield opened
    for terminal in terminals:
        terminal.close()


OpenTerminal = Callable[..., Terminal]


def given_back(terminal: Terminal) -> None:
    """The screen that was there before, the cursor, the echo of keys."""
    assert _LEAVE_SCREEN in terminal.written
    assert _SHOW_CURSOR in terminal.written
    assert termios.tcgetattr(terminal.master) == terminal.before


def test_a_stream_is_drawn_and_q_leaves_with_a_summary(open_terminal: OpenTerminal) -> None:
    with KvPublisher() as engine:
        engine.publish(stored([1, 2, 3]))
        terminal = open_terminal(
            f"vllm-0={engine.endpoint},{engine.replay_endpoint}", "--interval", "0.2"
        )
        terminal.shows("1 source: 1 EXACT").shows("3 blocks, at 0-2 of a prompt (vllm-0)")
        row = next(line for line in terminal.screen.display if line.startswith("vllm-0"))
        assert row.split()[:3] == ["vllm-0", "EXACT", "0"]
        assert terminal.text.rstrip().splitlines()[-1].startswith("q quit")
        terminal.type(b"q")
        assert terminal.ended() == 0
        given_back(terminal)
        assert "vllm-0: EXACT" in terminal.text
        assert "no trouble" in terminal.text


def test_ctrl_c_leaves_cleanly(open_terminal: OpenTerminal) -> None:
    terminal = open_terminal("--replay", str(data_path("vllm/0.32-truth")), "--interval", "0.2")
    terminal.shows("1 source")
    terminal.type(b"\x03")
    assert terminal.ended() == 130
    given_back(terminal)
    assert "Traceback" not in terminal.text


def test_sigterm_leaves_as_cleanly(open_terminal: OpenTerminal) -> None:
    terminal = open_terminal("--replay", str(data_path("vllm/0.32-truth")), "--interval", "0.2")
    terminal.shows("1 source")
    terminal.signal(signal.SIGTERM)
    assert terminal.ended() == 130
    given_back(terminal)


@pytest.fixture
def two_hundred(tmp_path: Path) -> str:
    """A recording of two hundred sources that each stored one block."""
    path = tmp_path / "many.jsonl"
    lines = [
        live_line(1000.0 + n / 1000, f"pod-{n}", [b"", bytes(8), payload_of(stored([1, 100 + n]))])
        for n in range(200)
    ]
    path.write_bytes(b"".join(lines))
    return str(path)


def pods(terminal: Terminal) -> list[str]:
    """The sources that are drawn, from above."""
    return [line.split()[0] for line in terminal.screen.display if line.startswith("pod-")]


def is_page(terminal: Terminal, page: int, from_pod: int) -> bool:
    """A whole page, which names how many are not on it."""
    drawn = pods(terminal)
    there = [f"pod-{n}" for n in range(from_pod, from_pod + len(drawn))]
    return drawn == there and f"and {200 - len(drawn)} more (page {page} of" in terminal.text


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_two_hundred_sources_have_pages(
    two_hundred: str, size: tuple[int, int], open_terminal: OpenTerminal
) -> None:
    terminal = open_terminal("--replay", two_hundred, "--speed", "max", "--sort", "name", size=size)
    terminal.shows("200 sources: 200 EXACT  end of the recording")
    terminal.shows("in 200 of 200: 1 block, at 0 of a prompt")
    terminal.until(lambda t: is_page(t, 1, 0))
    first = len(pods(terminal))
    assert first > 3
    terminal.type(b"n")
    terminal.until(lambda t: is_page(t, 2, first))
    terminal.type(b"\x1b[5~")
    terminal.until(lambda t: is_page(t, 1, 0))
    terminal.type(b"w")
    terminal.until(lambda t: "who holds what:" not in t.text and len(pods(t)) > first)
    terminal.type(b"q")
    assert terminal.ended() == 0
