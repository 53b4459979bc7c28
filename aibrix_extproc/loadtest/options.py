"""The command `loadtest`: its options, and the run from first to last."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from aibrix_extproc.errors import SettingsError

if TYPE_CHECKING:
    from aibrix_extproc.loadtest.client import ChatClient
    from aibrix_extproc.loadtest.summary import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `loadtest`."""
    parser.add_argument("--url", required=True, help="the gateway's root, http://host:port")
    parser.add_argument("--model", help="default: the first that the gateway's /v1/models lists")
    parser.add_argument(
        "--requests", type=_positive, default=156, metavar="N", help="at least this many (156)"
    )
    parser.add_argument(
        "--concurrency", type=_positive, default=12, metavar="N", help="requests at once (12)"
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed, other words (1)")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="sent with every request, such as authorization or routing-strategy; repeatable",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for a gateway that is just starting (10)",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")


def run(args: argparse.Namespace) -> int:
    """Send the workload; 0 where every request was answered in full, else 1."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    import aiohttp
    from rich.console import Console

    from aibrix_extproc.loadtest import show, workload
    from aibrix_extproc.loadtest.client import ChatClient
    from aibrix_extproc.loadtest.runner import run as send
    from aibrix_extproc.loadtest.summary import summarise

    if not args.url.startswith(("http://", "https://")):
        raise SettingsError(f"--url {args.url} is no URL: write http://host:port")
    console = Console()
    shape = workload.at_least(args.requests)
    conversations = workload.build(shape, args.seed)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = ChatClient(session, args.url, _headers(args.header))
        try:
            model = args.model or await _first_model(client, args.wait)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            print(f"aibrix-extproc: {args.url}/v1/models: {error}", file=sys.stderr)
            return 1
        start = time.perf_counter()
        with show.progress(console, model, shape.requests) as on_outcome:
            outcomes = await send(client, model, conversations, args.concurrency, on_outcome)
    summary = summarise(outcomes, time.perf_counter() - start)
    console.print(show.table(summary))
    if args.json:
        _write(args.json, summary, model, args)
    return 1 if summary.errors else 0


async def _first_model(client: "ChatClient", wait_s: float) -> str:
    """What the gateway lists. Raises as `ChatClient.first_model` does, after `wait_s`."""
    import aiohttp

    deadline = time.monotonic() + wait_s
    while True:
        try:
            return await client.first_model()
        except (aiohttp.ClientError, OSError, ValueError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


def _write(path: Path, summary: "Summary", model: str, args: argparse.Namespace) -> None:
    run = {"url": args.url, "model": model, "seed": args.seed, "concurrency": args.concurrency}
    path.write_text(json.dumps(run | summary.to_json(), indent=2) + "\n")


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise SettingsError(f"--header {text!r} is not NAME:VALUE")
        headers[name.strip().lower()] = value.strip()
    return headers


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number
