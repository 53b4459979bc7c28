"""The command `demo`: its options, and the run from first to last."""

import argparse
import asyncio
import json
import signal
import sys
from functools import partial
from pathlib import Path

from aibrix_extproc.errors import ExtprocError, SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument("--envoy", metavar="PATH", help="default: $PATH, else .venv-envoy")
    parser.add_argument(
        "--envoy-config",
        type=Path,
        metavar="PATH",
        help="default: envoy/override-host.yaml of this checkout",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed, other words (1)")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("demo-report.json"),
        metavar="PATH",
        help="where the figures are written (demo-report.json)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 where every target was reached, else 1 and a line for each missed."""
    from rich.console import Console  # slow to import, and other commands do not need these

    from aibrix_extproc.demo import compare, report, show
    from aibrix_extproc.demo.progress import progress
    from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, shipped
    from aibrix_extproc.stack.processes import find_envoy

    envoy = find_envoy(args.envoy)
    template = args.envoy_config or shipped(OVERRIDE_HOST)
    console = Console()
    console.print("Real Envoy, real wire format, three engines that compute nothing.")
    watch = partial(progress, console)
    # As Ctrl-C: every context is left, and no folder stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        found = asyncio.run(compare.compare(compare.Sizes(), args.seed, envoy, template, watch))
    except SettingsError:
        raise
    except ExtprocError as error:
        print(
            f"aibrix-extproc: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr
        )
        return 1
    args.report.write_text(json.dumps(report.to_json(found), indent=2) + "\n")
    console.print(show.table(found))
    missed = report.shortfalls(found)
    for line in missed:
        console.print(f"missed: {line}", style="bold red", markup=False, soft_wrap=True)
    console.print(f"figures: {args.report}", markup=False, soft_wrap=True)
    return 1 if missed else 0
