"""CPU of the tokenizer's HTTP client, for each call.

    .venv/bin/python benchmarks/tokenizer_client.py [--calls 4000] [--in-flight 16] [--json]

A server in a process of its own gives one fixed reply, so that only the client's CPU is counted
(user and system time of this process, on uvloop as the server runs). `client` is one POST with its
reply read whole; `pool` is a whole prompt that no cache holds: outline, call, JSON, caches, and
what is learned from it. Each trial is a fresh process; the median and the spread are printed.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from aiohttp import web
from yarl import URL

from aibrix_extproc.extproc.openai import CHAT_PATH, parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.client import Client
from aibrix_extproc.tokenizer.pool import TokenizerPool

WORD = "seven "
WARM_UP_CALLS = 200


def serve(tokens: int, port: Connection) -> None:
    """A tokenizer whose every reply is the same."""
    reply = json.dumps(
        {"count": tokens, "max_model_len": 131_072, "tokens": list(range(1000, 1000 + tokens))}
    ).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=reply, content_type="application/json")

    async def run() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    uvloop.run(run())


def prompt(number: int, tokens: int) -> Prompt:
    text = f"{number} " + WORD * tokens + "?"
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    parsed = parse_body(CHAT_PATH, json.dumps(body).encode()).prompt
    assert parsed is not None
    return parsed


async def cpu_us(calls: int, in_flight: int, call: Callable[[int], Awaitable[object]]) -> float:
    """CPU of this process for each call, in microseconds."""
    numbers = iter(range(calls + WARM_UP_CALLS))

    async def work(until: int) -> None:
        for number in numbers:
            await call(number)
            if number >= until:
                return

    await asyncio.gather(*(work(WARM_UP_CALLS) for _ in range(in_flight)))
    left = calls + WARM_UP_CALLS - next(numbers)
    started = time.process_time()
    await asyncio.gather(*(work(calls + WARM_UP_CALLS) for _ in range(in_flight)))
    return 1e6 * (time.process_time() - started) / left


async def measure(what: str, tokens: int, calls: int, in_flight: int, port: int) -> float:
    address = f"127.0.0.1:{port}"
    prompts = [prompt(number, tokens) for number in range(calls + WARM_UP_CALLS)]
    if what == "client":
        client = Client()
        url = URL(f"http://{address}/tokenize")
        try:
            return await cpu_us(calls, in_flight, lambda n: client.post(url, prompts[n].body))
        finally:
            await client.close()
    pool = TokenizerPool(Settings(tokenizer_render=False), Metrics())
    await pool.start()
    try:
        return await cpu_us(calls, in_flight, lambda n: pool.tokenize(prompts[n], [address], 60.0))
    finally:
        await pool.close()


def trial(result: Connection, *args: Any) -> None:
    result.send(uvloop.run(measure(*args)))


def in_own_process(*args: Any) -> float:
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=trial, args=(theirs, *args))
    process.start()
    figure: float = mine.recv()
    process.join()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    args = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    rows = []
    for tokens in (25, 2700):
        mine, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(tokens, theirs), daemon=True)
        server.start()
        port = mine.recv()
        calls = args.calls if tokens < 1000 else args.calls // 4
        for what in ("client", "pool"):
            figures = [
                in_own_process(what, tokens, calls, args.in_flight, port)
                for _ in range(args.trials)
            ]
            rows.append(
                {
                    "what": what,
                    "tokens": tokens,
                    "cpu_us": round(statistics.median(figures), 1),
                    "lowest_us": round(min(figures), 1),
                    "highest_us": round(max(figures), 1),
                }
            )
        server.kill()
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print("| what | tokens of a prompt | CPU per call | lowest to highest |\n|---|---|---|---|")
    for r in rows:
        spread = f"{r['lowest_us']} to {r['highest_us']} µs"
        print(f"| {r['what']} | {r['tokens']} | {r['cpu_us']} µs | {spread} |")


if __name__ == "__main__":
    main()
