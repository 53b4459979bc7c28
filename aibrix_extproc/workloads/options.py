"""The options that choose a workload, the same for every command that runs one.

Owns their names, their defaults and what goes with what. Knows neither engines nor HTTP.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads.generated import PRESETS, WORKLOADS, Shape
from aibrix_extproc.workloads.jitter import jittered
from aibrix_extproc.workloads.mooncake import mooncake
from aibrix_extproc.workloads.replay import replay
from aibrix_extproc.workloads.sessions import Session

MOONCAKE: Final = "mooncake"
REPLAY: Final = "replay"
_READERS: Final = {MOONCAKE: mooncake, REPLAY: replay}
_SHARED_PREFIX: Final = "shared-prefix"


def add_arguments(
    parser: argparse.ArgumentParser, defaults: Shape, *, replays: bool = False
) -> None:
    """The workload and its options; `sessions_of` reads them, with the same defaults.

    `replays`: whether requests of a file can be sent, whose tokens nobody knows.
    """
    add = parser.add_argument
    files = (MOONCAKE, REPLAY) if replays else (MOONCAKE,)
    add("workload", choices=(*WORKLOADS, *files), help="what is asked")
    add("trace", nargs="?", type=Path, help=f"{' or '.join(files)}: the file, of JSON lines")
    add("--seed", type=int, default=1, help="one seed, one run (1)")
    trace = parser.add_argument_group(" and ".join(files)).add_argument
    trace("--speed", type=above_zero, default=1.0, help="times as fast as the file (1)")
    trace("--limit", type=positive, metavar="N", help="only the first lines")
    trace(
        "--jitter",
        type=not_negative,
        default=0.0,
        metavar="S",
        help="each request up to S seconds of the file later, by the seed (0: its own times)",
    )
    made = parser.add_argument_group("generated workloads; tokens and seconds").add_argument
    made(
        "--preset",
        choices=tuple(PRESETS),
        help="of shared-prefix; b2b-saas: 150 groups of 5 prompts, 6,000 + 1,200 tokens, 1,000 "
        "of answer. Options beside it go before it",
    )
    for name, kind, unit, text in (
        ("sessions", positive, "N", ""),
        ("rate", above_zero, "PER_S", "sessions that begin in a second "),
        ("groups", positive, "N", "different prefixes "),
        ("prefix-tokens", positive, "N", ""),
        ("turn-tokens", positive, "N", "of each turn "),
        ("output-tokens", positive, "N", ""),
        ("turns", positive, "N", "of a conversation "),
        ("think", above_zero, "S", "between turns, mean "),
    ):
        field = "think_s" if name == "think" else name.replace("-", "_")
        default = getattr(defaults, field)
        made(f"--{name}", type=kind, dest=field, metavar=unit, help=f"{text}({default:g})")


def sessions_of(args: argparse.Namespace, defaults: Shape) -> list[Session]:
    """What these options ask for. Raises SettingsError."""
    if args.workload in _READERS:
        if args.trace is None:
            raise SettingsError(
                f"{args.workload} needs a file: {args.command} {args.workload} PATH"
            )
        read = _READERS[args.workload](args.trace, args.speed, args.limit)
        return jittered(read, args.jitter / args.speed, args.seed)
    if args.trace is not None:
        raise SettingsError(f"{args.workload} takes no file: leave out {args.trace}")
    return WORKLOADS[args.workload](shape_of(args, defaults), args.seed)


def shape_of(args: argparse.Namespace, defaults: Shape) -> Shape:
    """The sizes: what is given, else the preset's, else the defaults. Raises SettingsError."""
    if args.preset is not None and args.workload != _SHARED_PREFIX:
        raise SettingsError(f"--preset {args.preset} is one of {_SHARED_PREFIX}")
    preset = PRESETS[args.preset] if args.preset else {}
    given = {
        field.name: value
        for field in fields(Shape)
        if (value := getattr(args, field.name, None)) is not None
    }
    return Shape(**{**asdict(defaults), **preset, **given})


def settled(
    args: argparse.Namespace, defaults: Shape
) -> dict[str, str | int | float | bool | None]:
    """The workload's options for a report: those that count for it, defaults filled in."""
    told: dict[str, str | int | float | bool | None] = {
        "workload": args.workload,
        "seed": args.seed,
    }
    if args.workload in _READERS:
        names: Sequence[str] = ("speed", "limit", "jitter")
        return told | {"trace": str(args.trace)} | {name: getattr(args, name) for name in names}
    return told | {"preset": args.preset} | asdict(shape_of(args, defaults))


def positive(text: str) -> int:
    """An option's whole number of 1 or more. Raises ArgumentTypeError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def not_negative(text: str) -> float:
    """An option's number of 0 or more. Raises ArgumentTypeError."""
    return _number(text, 0.0, "0 or more")


def above_zero(text: str) -> float:
    """An option's number above 0. Raises ArgumentTypeError."""
    return _number(text, 1e-9, "above 0")


def _number(text: str, least: float, told: str) -> float:
    number = float(text)
    if not least <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not {told}")
    return number
