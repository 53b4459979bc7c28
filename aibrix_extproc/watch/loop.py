"""The run: a station watched until its end, on a screen, in lines, or once.

Owns what is printed when, the keys' meaning and the exit code. Knows no source.
"""

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Final

from rich.console import Console
from rich.live import Live as Display

from aibrix_extproc.watch import text
from aibrix_extproc.watch.rows import View, troubles
from aibrix_extproc.watch.screen import Choices, pages, screen
from aibrix_extproc.watch.station import Station
from aibrix_extproc.watch.terminal import Keys

EXIT_WELL: Final = 0
EXIT_TROUBLE: Final = 1
EXIT_STOPPED: Final = 130
"""As of a shell: Ctrl-C, or SIGTERM."""
ONCE_S: Final = 10.0
"""Longest wait of `--once` for the first sync."""

_SETTLE_TURN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Show:
    """How a station is shown."""

    choices: Choices
    interval_s: float = 1.0
    as_json: bool = False
    once: bool = False
    """Nothing is shown before the summary."""
    seconds: float | None = None
    """The longest run; None: until it is ended."""


def watch(station: Station, show: Show, console: Console, keys: Keys) -> int:
    """Start the station, show it, and close it. Raises what `Station.start` does."""
    stopped = False
    try:
        with _interruptible():
            station.start()
            try:
                if show.once:
                    _settle(station, show.seconds or ONCE_S)
                elif console.is_terminal and not console.is_dumb_terminal and not show.as_json:
                    _on_screen(station, show, console, keys)
                else:
                    _in_lines(station, show)
            except KeyboardInterrupt:
                stopped = True
            view = station.final()
    finally:
        station.close()
    _say_last(view, show)
    if stopped:
        return EXIT_STOPPED
    return EXIT_TROUBLE if troubles(view) else EXIT_WELL


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the terminal is given back, the recording closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(station: Station, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not station.settled() and time.monotonic() < until:
        station.view()
        time.sleep(_SETTLE_TURN_S)


def _on_screen(station: Station, show: Show, console: Console, keys: Keys) -> None:
    """Draw until `q`, or until the time is over."""
    choices = show.choices
    began = time.monotonic()
    with (
        keys.reading(),
        Display(console=console, screen=True, auto_refresh=False, transient=True) as display,
    ):
        while (left_s := _left_s(show, began)) > 0:
            view = station.view()
            width, height = console.size
            display.update(screen(view, choices, width, height), refresh=True)
            drawn = time.monotonic()
            while (wait_s := min(show.interval_s, left_s) - (time.monotonic() - drawn)) > 0:
                key = keys.wait(wait_s)
                if key == "q":
                    return
                if key is not None:
                    choices = pressed(choices, key, view, height)
                    break


def _left_s(show: Show, began: float) -> float:
    return float("inf") if show.seconds is None else began + show.seconds - time.monotonic()


def pressed(choices: Choices, key: str, view: View, height: int) -> Choices:
    """What is chosen after this key."""
    match key:
        case "s":
            return replace(choices, sort=choices.sort.next(), page=0)
        case "n":
            return replace(choices, page=min(choices.page + 1, pages(view, height) - 1))
        case "p":
            return replace(choices, page=max(0, choices.page - 1))
        case "w":
            return replace(choices, holdings=not choices.holdings)
        case "l":
            return replace(choices, log=not choices.log)
        case _:
            return choices


def _in_lines(station: Station, show: Show) -> None:
    """A line an interval, until the end of the time or of the recording."""
    began = time.monotonic()
    while (left_s := _left_s(show, began)) > 0:
        view = station.view()
        if view.ended:
            return
        _print_interval(view, show)
        time.sleep(min(show.interval_s, left_s))


def _print_interval(view: View, show: Show) -> None:
    tokens = show.choices.with_tokens
    if show.as_json:
        said = text.json_line(view, show.choices.sort, with_tokens=tokens)
        print(json.dumps(said), flush=True)
    else:
        print(text.line(view), flush=True)


def _say_last(view: View, show: Show) -> None:
    tokens, sort = show.choices.with_tokens, show.choices.sort
    if show.as_json:
        print(json.dumps(text.json_line(view, sort, with_tokens=tokens, last=True)), flush=True)
    else:
        print("\n".join(text.summary(view, sort, with_tokens=tokens)), flush=True)
