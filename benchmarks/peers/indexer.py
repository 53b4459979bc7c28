"""Dynamo's standalone indexer, a process of its own, fed over ZMQ as engines would.

    python -m benchmarks.peers.indexer FILES EVENTS_PER_MESSAGE PYTHON_OF_THE_PEER

Every source is a PUB socket here. Its figures are of its whole process, measured from outside: ZMQ,
msgpack, hashing and tree. It has no Python look-up; what is timed is its HTTP handler.
"""

import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from benchmarks.messages import Message, cpu_seconds, on_one_core, read_messages, rss_bytes
from benchmarks.peers.files import PROMPT_TOKENS, Files, load

_PATIENCE_S = 240
_APPLIED = re.compile(r"^dynamo_kvrouter_kv_cache_events_applied\{(.*)\} (\d+)$", re.M)
_QUERY = r'^dynamo_kvindexer_request_duration_seconds_%s\{endpoint="/query"\} (\S+)$'


class Indexer:
    """The child, its HTTP API, and one PUB socket per source."""

    def __init__(self, process: int, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self._context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._sequences: list[int] = []

    def call(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            answer: bytes = reply.read()
        return answer

    def register(self, sources: int) -> None:
        for source in range(sources):
            publisher = self._context.socket(zmq.PUB)
            publisher.setsockopt(zmq.SNDHWM, 0)  # nothing is dropped here: it waits in order
            port = publisher.bind_to_random_port("tcp://127.0.0.1")
            self._sockets.append(publisher)
            self._sequences.append(0)
            self.call("/register", {"instance_id": source, "model_name": "m", "block_size": 16,
                                    "endpoint": f"tcp://127.0.0.1:{port}"})  # fmt: skip

    def applied(self, kind: str) -> int:
        """Events applied so far. Any that was not taken as it is ends the trial."""
        counts = _APPLIED.findall(self.call("/metrics").decode())
        bad = [found for found in counts if 'status="ok"' not in found[0] and found[1] != "0"]
        if bad:
            raise SystemExit(f"the indexer refused events: {bad}")
        return sum(int(count) for labels, count in counts if f'"{kind}"' in labels)

    def feed(self, messages: list[Message], kind: str, events: int) -> float:
        """CPU seconds of the child until it has applied that many more events of this kind."""
        wanted = self.applied(kind) + events
        start = cpu_seconds(self.process)
        for source, payload in messages:
            number = self._sequences[source]
            self._sockets[source].send_multipart([b"", struct.pack(">Q", number), payload])
            self._sequences[source] += 1
        wait_for(lambda: self.applied(kind) >= wanted, f"{events} events {kind}")
        return cpu_seconds(self.process) - start

    def query_us(self, tokens: list[int]) -> float:
        """Mean time inside the handler of /query, by the child's own histogram."""

        def histogram() -> tuple[float, float]:
            text = self.call("/metrics").decode()
            found = [re.search(_QUERY % part, text, re.M) for part in ("sum", "count")]
            spent, count = (float(match[1]) if match else 0.0 for match in found)
            return spent, count

        question = {"model_name": "m", "token_ids": tokens}
        scores = json.loads(self.call("/query", question))["scores"]
        assert {rank for held in scores.values() for rank in held.values()} == {len(tokens)}, scores
        spent, count = histogram()
        for _ in range(51):
            self.call("/query", question)
        spent_after, count_after = histogram()
        return (spent_after - spent) / (count_after - count) * 1e6


def wait_for(done: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"not seen within {_PATIENCE_S} s: {what}")
        time.sleep(0.05)


@contextmanager
def running(python: str) -> Iterator[Indexer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "dynamo.indexer", "--port", str(port), "--threads", "1"]
    null = subprocess.DEVNULL
    child = subprocess.Popen(on_one_core(command), stdout=null, stderr=null)
    indexer = Indexer(child.pid, port)

    def healthy() -> bool:
        if child.poll() is not None:
            raise SystemExit(f"the indexer ended with {child.returncode}")
        try:
            indexer.call("/health")
        except (OSError, urllib.error.URLError):
            return False
        return True

    try:
        wait_for(healthy, "the indexer's /health")
        yield indexer
    finally:
        child.kill()
        child.wait()


def trial(indexer: Indexer, files: Files, events: str) -> dict[str, float]:
    stored = list(read_messages(files.stored[events]))
    chains, removed = list(read_messages(files.chains)), list(read_messages(files.removed))
    indexer.register(files.sources)
    time.sleep(2)  # the subscriptions travel; the peer tells of a lost event, see `applied`
    before = rss_bytes(indexer.process)
    found = {"ingest_ns": indexer.feed(stored, "stored", files.events) / files.blocks * 1e9}
    found["memory_bytes"] = (rss_bytes(indexer.process) - before) / files.blocks
    indexer.feed(chains, "stored", len(chains))
    prompts = json.loads(Path(files.prompts).read_text())
    for tokens, prompt in zip(PROMPT_TOKENS, prompts, strict=True):
        found[f"match_{tokens}_us"] = indexer.query_us(prompt)
    found["removal_ns"] = indexer.feed(removed, "removed", files.blocks) / files.blocks * 1e9
    return found


def main() -> None:
    files, events, python = load(sys.argv[1]), sys.argv[2], sys.argv[3]
    with running(python) as indexer:
        print(json.dumps(trial(indexer, files, events)))


if __name__ == "__main__":
    main()
