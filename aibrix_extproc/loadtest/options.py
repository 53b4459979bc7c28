"""The command `loadtest`: its options, and the run from first to last."""

import argparse
import asyncio
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from aibrix_extproc import __version__
from aibrix_extproc.errors import ExtprocError, SettingsError
from aibrix_extproc.workloads import options as workloads
from aibrix_extproc.workloads.generated import Shape
from aibrix_extproc.workloads.options import above_zero, not_negative, positive

if TYPE_CHECKING:
    from aibrix_extproc.loadtest.campaign import Campaign, Found, Job, Target
    from aibrix_extproc.loadtest.own_stack import StackSizes
    from aibrix_extproc.loadtest.report.results import LoadTest
    from aibrix_extproc.loadtest.runner import OpenLoop
    from aibrix_extproc.workloads.sessions import Session

SHAPE: Final = Shape(
    sessions=300,
    rate=10.0,
    groups=20,
    prefix_tokens=1000,
    turn_tokens=200,
    output_tokens=32,
    turns=4,
    think_s=1.0,
)
"""Half a minute on a laptop."""
_OWN_STRATEGIES: Final = ("least-request", "prefix-cache")
INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `loadtest`."""
    workloads.add_arguments(parser, SHAPE, replays=True)
    add = parser.add_argument
    add(
        "--strategy",
        action="append",
        metavar="NAME",
        help=f"repeatable, a run each; own stack: {' and '.join(_OWN_STRATEGIES)} where none is "
        "given; with --url the header routing-strategy, and none where none is given",
    )
    add(
        "--duration",
        type=above_zero,
        metavar="S",
        help="leave out sessions that begin later than that",
    )
    add(
        "--max-open",
        type=positive,
        default=2000,
        metavar="N",
        help="requests at once; one more is not sent, and counts as failed (2000)",
    )
    add("--no-null-run", action="store_true", help="do not measure the generator's own ceiling")
    add(
        "--report",
        type=Path,
        default=Path("loadtest-report"),
        metavar="FOLDER",
        help="where report.json and report.html are written (loadtest-report)",
    )
    _add_slo(parser)
    _add_target(parser)
    _add_stack(parser)


def _add_slo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what counts as good (goodput)").add_argument
    add("--slo-ttft-ms", type=above_zero, metavar="MS", help="time to first token, at most")
    add(
        "--slo-inter-token-ms",
        type=above_zero,
        metavar="MS",
        help="the mean of a request's own gaps between tokens, at most",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("a gateway that runs already").add_argument
    add("--url", help="its root, http://host:port; without it a stack of its own is started")
    add("--model", help="default: the first that /v1/models lists")
    add(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="sent with every request, such as authorization; repeatable",
    )
    add("--wait", type=not_negative, default=10.0, metavar="S", help="for it to answer (10)")
    add("--ignore-eos", action="store_true", help="ask for answers of full length (vLLM)")
    add(
        "--processor-metrics",
        action="append",
        default=[],
        metavar="URL",
        help="a processor's /metrics page, for decisions by reason; repeatable",
    )
    add(
        "--engine-metrics",
        action="append",
        default=[],
        metavar="POD=URL",
        help="an engine's /metrics page, for the load of its pod; repeatable",
    )


def _add_stack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("a stack of its own").add_argument
    add("--pods", type=positive, default=4, metavar="N", help="fake engines (4)")
    add("--num-blocks", type=positive, default=4096, metavar="N", help="of each engine (4096)")
    add("--block-size", type=positive, default=16, metavar="N", help="tokens (16)")
    add("--prefill-us-per-token", type=not_negative, default=50.0, metavar="US", help="(50)")
    add("--decode-ms-per-token", type=not_negative, default=10.0, metavar="MS", help="(10)")
    add("--tokens-per-chunk", type=positive, default=1, metavar="N", help="of an answer (1)")
    add("--envoy", metavar="PATH", help="default: $PATH, else .venv-envoy")
    add(
        "--envoy-config",
        type=Path,
        metavar="PATH",
        help="default: envoy/override-host.yaml of this checkout",
    )


def run(args: argparse.Namespace) -> int:
    """Send the workload under each strategy and report; 0 where all was answered in full, 130
    where it was interrupted, else 1. Raises SettingsError."""
    from aibrix_extproc.loadtest.campaign import Campaign

    sessions = _sessions(args)
    job = _job(args, sessions)
    _folder(args.report)
    watch = partial(_shown, requests=sum(len(session.turns) for session in sessions))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(_interruptible(Campaign(job, watch)))
    except asyncio.CancelledError:
        return INTERRUPTED
    except SettingsError:
        raise
    except ExtprocError as error:
        notes = getattr(error, "__notes__", [])
        print(f"aibrix-extproc: {error}", *notes, sep="\n", file=sys.stderr)
        return 1
    return _report(args, found)


async def _interruptible(campaign: "Campaign") -> "Found":
    """The first Ctrl-C ends the run and reports what there is; the second, or SIGTERM, ends all at
    once, and every context is left. Raises CancelledError then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    pressed = 0

    def stop() -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 1:
            print("\ninterrupted: the report is of what was done so far", file=sys.stderr)
            campaign.stop()
        elif task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, stop)
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    return await campaign.run()


def _sessions(args: argparse.Namespace) -> "list[Session]":
    sessions = workloads.sessions_of(args, SHAPE)
    if args.duration is not None:
        sessions = [session for session in sessions if session.start_s <= args.duration]
    if not sessions:
        raise SettingsError(f"no session begins within --duration {args.duration:g}")
    return sessions


def _job(args: argparse.Namespace, sessions: "Sequence[Session]") -> "Job":
    from aibrix_extproc.loadtest.campaign import AS_SET, Job

    default = (AS_SET,) if args.url else _OWN_STRATEGIES
    return Job(
        sessions=sessions,
        strategies=list(dict.fromkeys(args.strategy or default)),
        target=_target(args) if args.url else _stack(args, sessions),
        seed=args.seed,
        model=args.model,
        max_open=args.max_open,
        ignore_eos=args.ignore_eos,
        null_run=not args.no_null_run,
    )


def _target(args: argparse.Namespace) -> "Target":
    from aibrix_extproc.loadtest.campaign import Target
    from aibrix_extproc.loadtest.samples import Pages

    for url in (args.url, *args.processor_metrics):
        _check_url(url)
    engines = {}
    for text in args.engine_metrics:
        pod, equals, url = text.partition("=")
        if not equals:
            raise SettingsError(f"--engine-metrics {text} is not POD=URL")
        _check_url(url)
        engines[pod] = url
    pages = Pages(tuple(args.processor_metrics), engines)
    return Target(args.url, _headers(args.header), args.wait, pages)


def _stack(args: argparse.Namespace, sessions: "Sequence[Session]") -> "StackSizes":
    from aibrix_extproc.loadtest.own_stack import EngineSizes, StackSizes
    from aibrix_extproc.routing.strategies import STRATEGIES
    from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, shipped
    from aibrix_extproc.stack.processes import find_envoy

    if beside := [name for name in _OF_A_TARGET if getattr(args, name)]:
        raise SettingsError(f"--{beside[0].replace('_', '-')} goes with --url")
    for name in args.strategy or ():
        if name not in STRATEGIES:
            raise SettingsError(f"--strategy {name} is none: choose from {', '.join(STRATEGIES)}")
    engine = EngineSizes(
        blocks=args.num_blocks,
        block_size=args.block_size,
        prefill_us_per_token=args.prefill_us_per_token,
        decode_ms_per_token=args.decode_ms_per_token,
        tokens_per_chunk=args.tokens_per_chunk,
    )
    _check_fits(args, sessions)
    template = args.envoy_config or shipped(OVERRIDE_HOST)
    return StackSizes(args.pods, engine, find_envoy(args.envoy), template)


def _check_fits(args: argparse.Namespace, sessions: "Sequence[Session]") -> None:
    """A request that no cache can hold would be refused by the engine, in the middle of the run."""
    longest = max(
        turn.prompt_tokens + turn.answer.tokens for session in sessions for turn in session.turns
    )
    needed = -(-longest // args.block_size) + 1  # a block of each cache is reserved
    if needed > args.num_blocks:
        raise SettingsError(
            f"the longest request has {longest} tokens with its answer, more than a cache of "
            f"--num-blocks {args.num_blocks} holds: {needed} are needed"
        )


_OF_A_TARGET: Final = ("header", "processor_metrics", "engine_metrics")


def _check_url(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"{url} is no URL: write http://host:port")


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise SettingsError(f"--header {text!r} is not NAME:VALUE")
        headers[name.strip().lower()] = value.strip()
    return headers


def _shown(name: str, loop: "OpenLoop", requests: int) -> AbstractContextManager[None]:
    from aibrix_extproc.loadtest import progress

    return progress.shown(name, loop, requests, sys.stderr)


def _report(args: argparse.Namespace, found: "Found") -> int:
    from rich.console import Console

    from aibrix_extproc.loadtest.report.report import summarise
    from aibrix_extproc.loadtest.report.table import table
    from aibrix_extproc.loadtest.report.write import write

    for folder in found.logs:
        print(f"the logs of all processes are kept in {folder}", file=sys.stderr)
    if not found.runs:
        return INTERRUPTED
    report = summarise(results(args, found))
    Console().print(table(report))
    for path in write(report, args.report):
        print(f"written: {path}", file=sys.stderr)
    if any(run.interrupted for run in found.runs):
        return INTERRUPTED
    return 1 if any(run.errors for run in report.runs) else 0


def _folder(path: Path) -> None:
    """A report that cannot be written is told before anything is sent."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--report {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise SettingsError(f"--report {path}: nothing can be written there")


def results(args: argparse.Namespace, found: "Found") -> "LoadTest":
    """All that was found, and what was asked for."""
    from aibrix_extproc.loadtest.report.results import Environment, LoadTest, Slo
    from aibrix_extproc.loadtest.usage import cores

    return LoadTest(
        model=found.model,
        workload=args.workload,
        target=args.url or f"own stack, {args.pods} pods",
        seed=args.seed,
        started_unix_s=found.started_unix_s,
        environment=Environment(
            __version__,
            platform.python_version(),
            cores(),
            f"{platform.system()} {platform.machine()}",
        ),
        runs=found.runs,
        options=_told(args),
        slo=Slo(_seconds(args.slo_ttft_ms), _seconds(args.slo_inter_token_ms)),
        null_run=found.null_run,
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


_ALWAYS_TOLD: Final = ("duration", "max_open", "slo_ttft_ms", "slo_inter_token_ms")


def _told(args: argparse.Namespace) -> dict[str, str | int | float | bool | None]:
    own = ("pods", "num_blocks", "block_size", "prefill_us_per_token", "decode_ms_per_token")
    told = workloads.settled(args, SHAPE)
    told |= {name: getattr(args, name) for name in _ALWAYS_TOLD}
    if args.url:
        told |= {"url": args.url, "ignore_eos": args.ignore_eos}
    else:
        told |= {name: getattr(args, name) for name in (*own, "tokens_per_chunk")}
    return told
