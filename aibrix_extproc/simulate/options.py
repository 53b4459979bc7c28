"""The command `simulate`: its options, and the runs from first to last."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.scenes import FORMS, parse_scene, told
from aibrix_extproc.workloads import options as workloads
from aibrix_extproc.workloads.generated import Shape
from aibrix_extproc.workloads.options import not_negative, positive

if TYPE_CHECKING:
    from aibrix_extproc.settings import Settings
    from aibrix_extproc.simulate.loop import Scenario
    from aibrix_extproc.simulate.records import Summary

_SHAPE: Final = Shape()
_DEFAULT_STRATEGIES: Final = ("round-robin", "least-request", "prefix-cache")
_TOLD_ELSEWHERE: Final = (
    *("run", "command", "json", "strategy"),
    *("trace", "speed", "limit", "jitter", "preset"),
)
_EVENTS: Final = "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"
_TOKENIZER: Final = "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `simulate`."""
    add = parser.add_argument
    workloads.add_arguments(parser, _SHAPE)
    add(
        "--strategy",
        action="append",
        metavar="NAME",
        help="repeatable; any that the server knows, round-robin, oracle, central "
        f"({', '.join(_DEFAULT_STRATEGIES)})",
    )
    add("--pods", type=positive, default=8, metavar="N", help="engines (8)")
    add("--bound", action="store_true", help="also the hit ratio of one infinite shared cache")
    add("--no-events", action="store_true", help="the router hears nothing of the engines")
    add(
        "--event-delay-ms",
        type=not_negative,
        default=0.0,
        metavar="MS",
        help="from the end of a step to the arrival of its events (0)",
    )
    add(
        "--scene",
        action="append",
        type=parse_scene,
        default=[],
        metavar="SCENE",
        help=f"repeatable: {FORMS}",
    )
    add("--json", type=Path, metavar="PATH", help="write the figures there")
    _add_engine(parser)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engines").add_argument
    engine("--blocks", type=positive, default=16_384, metavar="N", help="of each pod (16384)")
    engine("--block-size", type=positive, default=64, metavar="N", help="tokens (64)")
    engine("--max-num-seqs", type=positive, default=256, metavar="N", help="(256)")
    engine("--max-num-batched-tokens", type=positive, default=8192, metavar="N", help="(8192)")
    time = parser.add_argument_group(
        "time of a step (docs/simulator.md); n: its prompt tokens, f: how full the cache is with "
        "what decodes"
    ).add_argument
    for name, default, text in (
        ("prefill-ms", 16.50142, "where it has any prompt tokens"),
        ("prefill-us-per-token", 15.18344, "for each of n"),
        ("prefill-ns-per-square", 0.4209989, "for n²"),
        ("decode-ms", 5.74, "where anything decodes"),
        ("decode-fill-ms", 54.01, "for f"),
        ("decode-fill-square-ms", 25.74, "taken off for f²"),
        ("prefill-scale", 1.0, "multiplies all of prefill"),
        ("decode-scale", 1.0, "multiplies all of decode"),
    ):
        time(f"--{name}", type=not_negative, default=default, help=f"{text} ({default:g})")


def run(args: argparse.Namespace) -> int:
    """Simulate each strategy on the same traffic; 0. Raises SettingsError."""
    from rich.console import Console

    from aibrix_extproc.simulate import show
    from aibrix_extproc.simulate.loop import Simulation
    from aibrix_extproc.simulate.records import summarise

    settings = router_settings(os.environ, events=not args.no_events)
    sessions = workloads.sessions_of(args, _SHAPE)
    scenario = _scenario(args)
    names = args.strategy or list(_DEFAULT_STRATEGIES)
    _check(names)
    turns = sum(len(session.turns) for session in sessions)
    found: list[Summary] = []
    for name in names:
        simulation = Simulation(replace(scenario, strategy=name), settings)
        with show.progress(Console(stderr=True), name, turns) as on_answer:
            found.append(summarise(simulation.run(sessions, on_answer)))
    Console().print(show.table(found))
    if args.json is not None:
        _write(args.json, args, found)
    return 0


def router_settings(environment: Mapping[str, str], *, events: bool) -> "Settings":
    """The server's settings, from its own variables, with tokens and with or without events.

    Raises SettingsError.
    """
    from aibrix_extproc.settings import Settings

    wanted = {_TOKENIZER: "true", _EVENTS: "true" if events else "false"}
    return Settings.from_environment({**environment, **wanted})


def _check(names: list[str]) -> None:
    from aibrix_extproc.simulate.names import NAMES

    for name in names:
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise SettingsError(f"--strategy {name} is none: choose from {known}")


def _scenario(args: argparse.Namespace) -> "Scenario":
    from aibrix_extproc.simulate.engine import EngineShape
    from aibrix_extproc.simulate.loop import Scenario
    from aibrix_extproc.simulate.timing import Polynomial

    time = Polynomial(
        prefill_ms=args.prefill_ms,
        prefill_us_per_token=args.prefill_us_per_token,
        prefill_ns_per_square=args.prefill_ns_per_square,
        decode_ms=args.decode_ms,
        decode_fill_ms=args.decode_fill_ms,
        decode_fill_square_ms=args.decode_fill_square_ms,
        prefill_scale=args.prefill_scale,
        decode_scale=args.decode_scale,
    )
    shape = EngineShape(
        args.blocks, args.block_size, args.max_num_seqs, args.max_num_batched_tokens
    )
    return Scenario(
        strategy="",
        times=(time,) * args.pods,
        shape=shape,
        event_delay_s=args.event_delay_ms / 1e3,
        seed=args.seed,
        bound=args.bound,
        scenes=tuple(args.scene),
    )


def _write(path: Path, args: argparse.Namespace, found: "list[Summary]") -> None:
    elsewhere = {*_TOLD_ELSEWHERE, *(field.name for field in fields(Shape))}
    given = {name: value for name, value in vars(args).items() if name not in elsewhere}
    given["scene"] = [told(scene) for scene in args.scene]
    asked = workloads.settled(args, _SHAPE)
    page = {"options": given | asked, "runs": [summary.to_json() for summary in found]}
    try:
        path.write_text(json.dumps(page, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"--json {path}: {error.strerror}") from None
    print(f"written: {path}", file=sys.stderr)
