"""The command `simulate`: its options, and the runs from first to last."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.figures import plain
from aibrix_extproc.simulate.scenes import FORMS, parse_scene, told
from aibrix_extproc.workloads import options as workloads
from aibrix_extproc.workloads.generated import Shape
from aibrix_extproc.workloads.options import above_zero, not_negative, positive

if TYPE_CHECKING:
    from aibrix_extproc.settings import Settings
    from aibrix_extproc.simulate.loop import Scenario
    from aibrix_extproc.simulate.over_time import Slice
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
        "--heads-at-once",
        action="store_true",
        help="heads of answers come as requests are sent, as vLLM's do, not with the first token",
    )
    add(
        "--slo",
        type=_pair,
        metavar="TTFT_MS:TOKEN_MS",
        help="also the share of requests whose first token and mean time between tokens keep this",
    )
    add(
        "--over-time",
        type=above_zero,
        metavar="S",
        help="also hit ratios and TTFT by slices of so many seconds, in the file",
    )
    add("--json", type=Path, metavar="PATH", help="write the figures there")
    _add_gateways(parser)
    _add_engine(parser)


def _add_gateways(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("gateways, and what happens meanwhile").add_argument
    add("--gateways", type=positive, default=1, metavar="N", help="replicas of the server (1)")
    add(
        "--front",
        choices=("random", "session-hash"),
        default="random",
        help="which of them a request meets (random)",
    )
    add(
        "--around",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="of requests that go to a pod by lot, past the gateways (0)",
    )
    add(
        "--scene",
        action="append",
        type=parse_scene,
        default=[],
        metavar="SCENE",
        help=f"repeatable: {FORMS}",
    )
    add(
        "--replay-rate",
        type=not_negative,
        default=0.0,
        metavar="PER_S",
        help="batches that a gateway reads of each engine's replay in a second (0: all at once)",
    )


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
        ("prefill-ns-per-pair", 0.0, "for each pair of a token of n and one before it"),
    ):
        time(f"--{name}", type=not_negative, default=default, help=f"{text} ({default:g})")
    time(
        "--slow-pods",
        type=_slow,
        default=(0.0, 1.0),
        metavar="SHARE:FACTOR",
        help="so many of the pods, the last ones, take as many times as long for each step",
    )


def _pair(text: str) -> tuple[float, float]:
    try:
        first, second = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers with a colon") from None
    if not (0 <= first < float("inf") and 0 < second < float("inf")):
        raise argparse.ArgumentTypeError(f"{text!r} holds a number that cannot be")
    return first, second


def _slow(text: str) -> tuple[float, float]:
    share, factor = _pair(text)
    return _share(str(share)), factor


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, 0 to 1")
    return share


def run(args: argparse.Namespace) -> int:
    """Simulate each strategy on the same traffic; 0. Raises SettingsError."""
    from rich.console import Console

    from aibrix_extproc.simulate import show
    from aibrix_extproc.simulate.loop import Simulation
    from aibrix_extproc.simulate.over_time import over_time
    from aibrix_extproc.simulate.records import Slo, summarise

    settings = router_settings(os.environ, events=not args.no_events)
    sessions = workloads.sessions_of(args, _SHAPE)
    scenario = _scenario(args)
    names = args.strategy or list(_DEFAULT_STRATEGIES)
    _check(names)
    turns = sum(len(session.turns) for session in sessions)
    slo = None if args.slo is None else Slo(args.slo[0] / 1e3, args.slo[1] / 1e3)
    found: list[Summary] = []
    slices: list[list[Slice]] = []
    for name in names:
        simulation = Simulation(replace(scenario, strategy=name), settings)
        with show.progress(Console(stderr=True), name, turns) as on_answer:
            written = simulation.run(sessions, on_answer)
        found.append(summarise(written, slo))
        if args.over_time is not None:
            slices.append(over_time(written, args.over_time))
    Console().print(show.table(found))
    if args.json is not None:
        _write(args.json, args, found, slices)
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
        prefill_ns_per_pair=args.prefill_ns_per_pair,
    )
    share, factor = args.slow_pods
    slow = replace(
        time,
        prefill_scale=factor * time.prefill_scale,
        decode_scale=factor * time.decode_scale,
    )
    slow_pods = round(share * args.pods)
    shape = EngineShape(
        args.blocks, args.block_size, args.max_num_seqs, args.max_num_batched_tokens
    )
    return Scenario(
        strategy="",
        times=(time,) * (args.pods - slow_pods) + (slow,) * slow_pods,
        shape=shape,
        event_delay_s=args.event_delay_ms / 1e3,
        heads_at_once=args.heads_at_once,
        seed=args.seed,
        bound=args.bound,
        scenes=tuple(args.scene),
        gateways=args.gateways,
        front=args.front,
        around=args.around,
        replay_batches_per_s=args.replay_rate,
    )


def _write(
    path: Path, args: argparse.Namespace, found: "list[Summary]", slices: "list[list[Slice]]"
) -> None:
    elsewhere = {*_TOLD_ELSEWHERE, *(field.name for field in fields(Shape))}
    given = {name: value for name, value in vars(args).items() if name not in elsewhere}
    given["scene"] = [told(scene) for scene in args.scene]
    asked = workloads.settled(args, _SHAPE)
    runs = [summary.to_json() for summary in found]
    for one, of_it in zip(runs, slices, strict=False):
        one["over_time"] = [plain(asdict(piece)) for piece in of_it]
    page = {"options": given | asked, "runs": runs}
    try:
        path.write_text(json.dumps(page, indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"--json {path}: {error.strerror}") from None
    print(f"written: {path}", file=sys.stderr)
