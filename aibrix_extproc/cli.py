"""The command line: `serve`, `demo`, `fake-vllm`, `loadtest`, `simulate`, `doctor`, `watch`.

Owns the list of commands and the exit codes: 0 well, 1 the command's own failure, 2 a setting
or an option that cannot be used. A command's parts are imported only when it is asked for.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence

import uvloop

from aibrix_extproc import __version__, logs, settings
from aibrix_extproc.demo import options as demo
from aibrix_extproc.doctor import options as doctor
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.fakes import options as fakes
from aibrix_extproc.loadtest import options as loadtest
from aibrix_extproc.setting_types import parse_url
from aibrix_extproc.simulate import options as simulate
from aibrix_extproc.watch import options as watch

EXIT_SETTINGS = 2

log = logging.getLogger("aibrix_extproc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale may lack what names and words hold
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return int(args.run(args))
    except SettingsError as error:
        print(f"aibrix-extproc: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aibrix-extproc",
        description="Sends each LLM request to the pod that already holds its prefix.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "serve",
        help="run the external processor",
        description="Runs the external processor. Every setting is an environment variable: "
        "the table in the README lists them all.",
    )
    command.add_argument(
        "--from-peer",
        metavar="URL",
        default="",
        help="take over the index of a running replica: the URL of its peers' or debug port "
        "(docs/warm-restart.md). Where that fails, the start goes on without it.",
    )
    command.set_defaults(run=lambda args: serve(args.from_peer))
    for name, options, text in (
        ("demo", demo, "compare strategies on this machine, with a real Envoy"),
        ("fake-vllm", fakes, "an engine that needs no GPU and computes nothing"),
        ("loadtest", loadtest, "send the demo's workload to any gateway"),
        ("simulate", simulate, "compare strategies on virtual engines, in a process of its own"),
        ("doctor", doctor, "look at a set-up and name what is wrong with it"),
        ("watch", watch, "see, record and replay engines' event streams"),
    ):
        command = commands.add_parser(name, help=text)
        options.add_arguments(command)
        command.set_defaults(run=options.run)
    return parser


def serve(from_peer: str = "") -> int:
    """Read the environment, then serve until a signal. Raises SettingsError."""
    try:
        peer = parse_url(from_peer)
    except ValueError as error:
        raise SettingsError(f"--from-peer: {error}") from None
    values = settings.Settings.from_environment()
    logs.configure(values.log_level, values.log_format)
    for line in settings.warnings():
        log.warning(line)
    from aibrix_extproc.app import App  # slow to import, and no other command needs it

    return uvloop.run(App(values, peer).run())


if __name__ == "__main__":
    sys.exit(main())
