"""The command `simulate`: its options, and the runs from first to last."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aibrix_extproc.errors import SettingsError

if TYPE_CHECKING:
    from aibrix_extproc.settings import Settings
    from aibrix_extproc.simulate.loop import Scenario
    from aibrix_extproc.simulate.records import Summary
    from aibrix_extproc.simulate.traffic import Session

_MOONCAKE: Final = "mooncake"
_GENERATED: Final = ("shared-prefix", "multi-turn", "agent", "unique")
_DEFAULT_STRATEGIES: Final = ("round-robin", "least-request", "prefix-cache")
_EVENTS: Final = "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"
_TOKENIZER: Final = "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `simulate`."""
    add = parser.add_argument
    add("workload", choices=(_MOONCAKE, *_GENERATED), help="what is asked")
    add("trace", nargs="?", type=Path, help="mooncake: the trace, a file of JSON lines")
    add(
        "--strategy",
        action="append",
        metavar="NAME",
        help="repeatable; any that the server knows, and round-robin "
        f"({', '.join(_DEFAULT_STRATEGIES)})",
    )
    add("--pods", type=_positive, default=8, metavar="N", help="engines (8)")
    add("--seed", type=int, default=1, help="one seed, one run (1)")
    add("--bound", action="store_true", help="also the hit ratio of one infinite shared cache")
    add("--no-events", action="store_true", help="the router hears nothing of the engines")
    add(
        "--event-delay-ms",
        type=_not_negative,
        default=0.0,
        metavar="MS",
        help="from the end of a step to the arrival of its events (0)",
    )
    add("--json", type=Path, metavar="PATH", help="write the figures there")
    _add_traffic(parser)
    _add_engine(parser)


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    trace = parser.add_argument_group("mooncake").add_argument
    trace("--speed", type=_above_zero, default=1.0, help="times as fast as the trace (1)")
    trace("--limit", type=_positive, metavar="N", help="only the first lines")
    made = parser.add_argument_group("generated workloads; tokens and seconds").add_argument
    made("--sessions", type=_positive, default=750, metavar="N", help="(750)")
    made("--rate", type=_above_zero, default=8.0, help="sessions that begin in a second (8)")
    made("--groups", type=_positive, default=150, metavar="N", help="different prefixes (150)")
    made("--prefix-tokens", type=_positive, default=6000, metavar="N", help="(6000)")
    made("--turn-tokens", type=_positive, default=1200, metavar="N", help="of each turn (1200)")
    made("--output-tokens", type=_positive, default=1000, metavar="N", help="(1000)")
    made("--turns", type=_positive, default=5, metavar="N", help="of a conversation (5)")
    made("--think", type=_above_zero, default=10.0, metavar="S", help="between turns, mean (10)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    engine = parser.add_argument_group("engines").add_argument
    engine("--blocks", type=_positive, default=16_384, metavar="N", help="of each pod (16384)")
    engine("--block-size", type=_positive, default=64, metavar="N", help="tokens (64)")
    engine("--max-num-seqs", type=_positive, default=256, metavar="N", help="(256)")
    engine("--max-num-batched-tokens", type=_positive, default=8192, metavar="N", help="(8192)")
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
        time(f"--{name}", type=_not_negative, default=default, help=f"{text} ({default:g})")


def run(args: argparse.Namespace) -> int:
    """Simulate each strategy on the same traffic; 0. Raises SettingsError."""
    from rich.console import Console

    from aibrix_extproc.simulate import show
    from aibrix_extproc.simulate.loop import Simulation
    from aibrix_extproc.simulate.records import summarise

    settings = router_settings(os.environ, events=not args.no_events)
    sessions = _sessions(args)
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
    from aibrix_extproc.simulate.gateway import STRATEGY_NAMES

    for name in names:
        if name not in STRATEGY_NAMES:
            known = ", ".join(STRATEGY_NAMES)
            raise SettingsError(f"--strategy {name} is none: choose from {known}")


def _sessions(args: argparse.Namespace) -> "list[Session]":
    from aibrix_extproc.simulate.traffic import WORKLOADS, Shape, mooncake

    if args.workload == _MOONCAKE:
        if args.trace is None:
            raise SettingsError("mooncake needs the path of a trace: simulate mooncake PATH")
        return mooncake(args.trace, args.speed, args.limit)
    if args.trace is not None:
        raise SettingsError(f"{args.workload} takes no trace: leave out {args.trace}")
    shape = Shape(
        sessions=args.sessions,
        rate=args.rate,
        groups=args.groups,
        prefix_tokens=args.prefix_tokens,
        turn_tokens=args.turn_tokens,
        output_tokens=args.output_tokens,
        turns=args.turns,
        think_s=args.think,
    )
    return WORKLOADS[args.workload](shape, args.seed)


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
    )


def _write(path: Path, args: argparse.Namespace, found: "list[Summary]") -> None:
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("run", "command", "json", "strategy")
    }
    page = {"options": given, "runs": [summary.to_json() for summary in found]}
    try:
        path.write_text(json.dumps(page, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"--json {path}: {error.strerror}") from None
    print(f"written: {path}", file=sys.stderr)


def _number(text: str, least: float, told: str) -> float:
    number = float(text)
    if not least <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not {told}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _not_negative(text: str) -> float:
    return _number(text, 0.0, "0 or more")


def _above_zero(text: str) -> float:
    return _number(text, 1e-9, "above 0")
