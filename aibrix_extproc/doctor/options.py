"""The command `doctor`: its options, and the run from first to last.

Exit codes: 0 nothing red, 1 something red, 2 an option that cannot be used.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from aibrix_extproc.doctor.findings import Severity, worst
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.file_limit import raise_file_limit
from aibrix_extproc.setting_types import parse_url
from aibrix_extproc.units import parse_duration_s

EXIT_RED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`; without any, what `serve` would read is looked at."""
    parser.description = (
        "Looks at a set-up and names what is wrong with it: the variables as `serve` would read "
        "them, the pods, their engines and events, and, where told, Envoy and a running "
        "processor. Changes nothing. docs/doctor.md has every code."
    )
    add = parser.add_argument
    add("--env-file", type=Path, metavar="FILE", help="variables from NAME=VALUE lines instead")
    add("--kubernetes", action="store_true", help="pods from the cluster, whatever the variables")
    add("--namespace", default="", help="of the pods (AIBRIX_EXTPROC_NAMESPACE)")
    add("--kubeconfig", default="", metavar="FILE", help="default: the cluster's own, KUBECONFIG")
    envoy = parser.add_mutually_exclusive_group()
    envoy.add_argument("--envoy-admin", default="", metavar="URL", help="Envoy's admin page")
    envoy.add_argument(
        "--envoy-config-dump",
        default="",
        metavar="FILE",
        help="what /config_dump?include_eds answers, or a static bootstrap file; - for stdin",
    )
    add("--server", default="", metavar="URL", help="a running processor's admin port (8080)")
    add("--debug", default="", metavar="URL", help="a running processor's debug port (8081)")
    add("--probe", action="store_true", help="send each engine a completion of one token")
    add("--timeout", default="3s", metavar="TIME", help="of each question (3s)")
    add("--listen", default="1s", metavar="TIME", help="to event streams, without --probe (1s)")
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Look, and print. Raises SettingsError."""
    from rich.console import Console

    from aibrix_extproc.doctor.catalog import run_checks
    from aibrix_extproc.doctor.collect import Asked, collect
    from aibrix_extproc.doctor.collect_environment import read_environment_file
    from aibrix_extproc.doctor.report import as_json, print_text

    asked = Asked(
        kubernetes=args.kubernetes or bool(args.kubeconfig),
        namespace=args.namespace,
        kubeconfig=args.kubeconfig,
        envoy_admin=_url("--envoy-admin", args.envoy_admin),
        envoy_dump=args.envoy_config_dump,
        server=_url("--server", args.server),
        debug=_url("--debug", args.debug),
        probe=args.probe,
        timeout_s=_seconds("--timeout", args.timeout),
        listen_s=_seconds("--listen", args.listen),
    )
    raise_file_limit()
    environment = read_environment_file(args.env_file) if args.env_file else None
    findings = run_checks(asyncio.run(collect(asked, environment)))
    exit_code = EXIT_RED if worst(findings) is Severity.RED else 0
    try:
        if args.json:
            sys.stdout.write(as_json(findings, exit_code) + "\n")
        else:
            print_text(findings, Console(highlight=False))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exit_code


def _url(option: str, value: str) -> str:
    try:
        return parse_url(value)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None


def _seconds(option: str, value: str) -> float:
    try:
        seconds = parse_duration_s(value)
    except ValueError as error:
        raise SettingsError(f"{option}: {error}") from None
    if not 0 < seconds <= 3600:
        raise SettingsError(f"{option}: {value!r} is not between 0 and an hour")
    return seconds
