"""The command `watch`: its options, and which station they mean."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aibrix_extproc.errors import ExtprocError, SettingsError
from aibrix_extproc.file_limit import raise_file_limit
from aibrix_extproc.units import parse_size_bytes

if TYPE_CHECKING:
    from aibrix_extproc.settings import Settings
    from aibrix_extproc.watch.station import LastLines, Station

SORTS = ("name", "state", "batches", "stored", "removed", "bytes", "lag", "missing", "held")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `watch`."""
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="[NAME=]tcp://HOST:PORT[,tcp://HOST:REPLAY_PORT]",
    )
    add("--endpoints-file", type=Path, metavar="PATH", help="every rank whose kv_events are on")
    add("--server", metavar="URL", help="a running server's debug port, http://localhost:8081")
    add(
        "--replay",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="a recording: a file, or a folder with frames.jsonl; repeatable",
    )
    add("--speed", type=_speed, metavar="N", help="of --replay: recorded seconds a second, or max")
    add("--record", type=Path, metavar="PATH", help="write every message there, as JSON lines")
    add("--limit-bytes", type=_size, default=0, metavar="SIZE", help="of --record: older go (no)")
    add("--no-replay-port", action="store_true", help="ask no engine for a replay")
    _add_showing(parser)


def _add_showing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", action="store_true", help="one JSON object an interval")
    add("--once", action="store_true", help="no screen: the summary after the first sync")
    add("--seconds", type=_seconds, metavar="N", help="end by itself after so long")
    add("--interval", type=_seconds, default=1.0, metavar="N", help="seconds between two looks (1)")
    add("--sort", choices=SORTS, default="state", help="order of the sources (state)")
    add("--holdings", action="store_true", help="of --server: read its snapshot too")
    add("--show-tokens", action="store_true", help="token ids too, which prompts can be read from")


def run(args: argparse.Namespace) -> int:
    """Watch; 0 where nothing is wrong, 1 where something is, 130 after Ctrl-C or SIGTERM."""
    from rich.console import Console

    from aibrix_extproc.settings import Settings
    from aibrix_extproc.watch import loop
    from aibrix_extproc.watch.rows import Sort
    from aibrix_extproc.watch.screen import Choices
    from aibrix_extproc.watch.station import LastLines
    from aibrix_extproc.watch.terminal import Keys

    _check(args)
    settings = Settings.from_environment()
    console = Console()
    drawn = console.is_terminal and not (args.json or args.once)
    lines = LastLines()
    once = args.once or (bool(args.replay) and not console.is_terminal and args.speed is None)
    handler = lines if drawn else logging.StreamHandler(sys.stderr)
    show = loop.Show(
        Choices(sort=Sort(args.sort), with_tokens=args.show_tokens),
        args.interval,
        args.json,
        once,
        _limit_s(args, once),
    )
    try:
        with _logging_to(handler, once):
            return loop.watch(_station(args, settings, lines, console), show, console, Keys())
    except SettingsError:
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ExtprocError as error:
        print(f"aibrix-extproc: {error}", file=sys.stderr)
        return 1


def _limit_s(args: argparse.Namespace, once: bool) -> float | None:
    """A recording that is only summed up is played to its end, however long that takes."""
    if args.seconds is None and once and args.replay:
        return float("inf")
    seconds: float | None = args.seconds
    return seconds


def _station(
    args: argparse.Namespace, settings: "Settings", lines: "LastLines", console: object
) -> "Station":
    if args.server is not None:
        return _server(args, lines)
    if args.replay:
        from aibrix_extproc.watch.playback import Playback

        paced = getattr(console, "is_terminal", False) and not args.once
        speed = args.speed if args.speed is not None else (1.0 if paced else 0.0)
        playback = Playback(
            args.replay,
            settings,
            speed=speed,
            with_tokens=args.show_tokens,
            log_lines=lines.lines,
        )
        lines.clock = lambda: playback.now
        return playback
    return _live(args, settings, lines)


def _server(args: argparse.Namespace, lines: "LastLines") -> "Station":
    from aibrix_extproc.setting_types import parse_url
    from aibrix_extproc.watch.server import Server

    try:
        url = parse_url(args.server)
    except ValueError as error:
        raise SettingsError(f"--server: {error}") from None
    return Server(url, interval_s=args.interval, with_holdings=args.holdings, log_lines=lines.lines)


def _live(args: argparse.Namespace, settings: "Settings", lines: "LastLines") -> "Station":
    from aibrix_extproc.watch.live import Live
    from aibrix_extproc.watch.recorder import Recorder
    from aibrix_extproc.watch.sources import parse_targets, read_targets, without_replay

    raise_file_limit()
    targets = parse_targets(args.sources)
    if args.endpoints_file is not None:
        targets += read_targets(args.endpoints_file, settings)
    if args.no_replay_port:
        targets = [without_replay(target) for target in targets]
    recorder = Recorder(args.record, args.limit_bytes) if args.record is not None else None
    return Live(targets, settings, recorder, with_tokens=args.show_tokens, log_lines=lines.lines)


def _check(args: argparse.Namespace) -> None:
    """Options that exclude each other. Raises SettingsError."""
    engines = bool(args.sources) or args.endpoints_file is not None
    kinds = [engines, args.server is not None, bool(args.replay)]
    if sum(kinds) != 1:
        raise SettingsError(
            "watch: name what to watch, one of: SOURCE… or --endpoints-file PATH; --server URL; "
            "--replay PATH"
        )
    if args.record is not None and not engines:
        raise SettingsError("--record: only the streams of engines can be recorded")
    if args.limit_bytes and args.record is None:
        raise SettingsError("--limit-bytes is of --record, which is not given")
    if args.speed is not None and not args.replay:
        raise SettingsError("--speed is of --replay, which is not given")
    if args.holdings and args.server is None:
        raise SettingsError("--holdings is of --server, which is not given; elsewhere it is shown")


@contextlib.contextmanager
def _logging_to(handler: logging.Handler, once: bool) -> Iterator[None]:
    """What event sync logs; before a summary, only failures of this process."""
    root, library = logging.getLogger(), logging.getLogger("httpx")
    before = (root.handlers, root.level, library.level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    root.handlers = [handler]
    root.setLevel(logging.ERROR if once else logging.INFO)
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        library.setLevel(before[2])


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0.05 <= number <= 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0.05 to 1e9")
    return number


def _speed(text: str) -> float:
    """0 for `max`."""
    if text == "max":
        return 0.0
    number = _number(text)
    if not 0 < number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is neither max nor a number up to 1e6, above 0")
    return number


def _number(text: str) -> float:
    """NaN for a text that is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _size(text: str) -> int:
    try:
        return parse_size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
