"""Engines' event streams for the request path: real ZMQ sockets in a process of their own.

    python -m benchmarks.request_events '{"sources": 8, "size_bytes": 16384, …}'

Prints its ports as JSON, then takes commands, a line each: `store` announces the prompts of the
run (each in four sources), `run` publishes at the asked rate until `stop`; each is answered by a
line of JSON. Payloads are vLLM's, made beforehand: sequences that come, and push others
out.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import zmq

from benchmarks.request_prompts import Bodies
from benchmarks.workload import (
    BLOCK_TOKENS,
    GROUPS,
    PREFIX_BLOCKS,
    SUFFIX_BLOCKS,
    Message,
    Stored,
    Workload,
    block_hash,
    payload,
    stored_chain,
)

HOLDERS: Final = 4
_END: Final = b"\xff" * 8
_TURNS: Final = 320
"""Sequences of each source, after which the same come again."""
_HELD: Final = 160
"""Of them, those that a source has room for at once."""


class Sources:
    """One PUB and one ROUTER for each source."""

    def __init__(self, count: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._publishers = [context.socket(zmq.PUB) for _ in range(count)]
        self._routers = [context.socket(zmq.ROUTER) for _ in range(count)]
        self._numbers = [itertools.count() for _ in range(count)]
        self.poller = zmq.Poller()
        self.ports = []
        for publisher, router in zip(self._publishers, self._routers, strict=True):
            publisher.setsockopt(zmq.SNDHWM, 100_000)
            ports = [s.bind_to_random_port("tcp://127.0.0.1") for s in (publisher, router)]
            self.ports.append(ports)
            self.poller.register(router, zmq.POLLIN)

    def publish(self, source: int, batch: bytes) -> None:
        number = next(self._numbers[source]).to_bytes(8, "big")
        self._publishers[source].send_multipart([b"kv-events", number, batch])

    def answer_replays(self, ready: list[Any]) -> None:
        """There is nothing to tell but the end."""
        for router in self._routers:
            if any(socket is router for socket, _ in ready):
                frames = router.recv_multipart()
                router.send_multipart([frames[0], b"", _END, b""])


def prefix_hashes(source: int, group: int) -> list[int]:
    return [block_hash(3, source, group * PREFIX_BLOCKS + n) for n in range(PREFIX_BLOCKS)]


def suffix_hashes(source: int, turn: int) -> list[int]:
    first = GROUPS * PREFIX_BLOCKS + turn * SUFFIX_BLOCKS
    return [block_hash(3, source, first + n) for n in range(SUFFIX_BLOCKS)]


def prefixes(workload: Workload) -> Iterator[Message]:
    """What the sequences of all sources begin with."""
    for source in range(workload.sources):
        for group in range(GROUPS):
            tokens = workload.prompt(group)[: PREFIX_BLOCKS * BLOCK_TOKENS].tolist()
            stored = Stored(source, prefix_hashes(source, group), None, tokens)
            yield source, payload([stored.encoded(arrays=False)])


def churn(workload: Workload, events_per_message: int) -> Iterator[tuple[Message, int]]:
    """Messages with the blocks that they store; to be sent over and over.

    A source is full: each suffix that comes pushes one out, block by block, that came _HELD turns
    ago. What is pushed out comes again in the next round.
    """
    for turn in range(0, _TURNS, events_per_message):
        for source in range(workload.sources):
            numbers = workload.prompts_of(source)
            batch: list[Any] = []
            for now in range(turn, min(turn + events_per_message, _TURNS)):
                number = numbers[now]
                tokens = workload.prompt(number)[PREFIX_BLOCKS * BLOCK_TOKENS :].tolist()
                parent = prefix_hashes(source, number % GROUPS)[-1]
                stored = Stored(source, suffix_hashes(source, now), parent, tokens)
                batch.append(stored.encoded(arrays=False))
                batch += [
                    {"type": "BlockRemoved", "block_hashes": [h], "medium": "GPU", "group_idx": 0}
                    for h in suffix_hashes(source, (now - _HELD) % _TURNS)
                ]
            yield (source, payload(batch)), SUFFIX_BLOCKS * len(batch) // (1 + SUFFIX_BLOCKS)


def store(sources: Sources, options: dict[str, Any]) -> int:
    """Announce the prompts, each in HOLDERS sources, and the prefixes; the number of blocks."""
    bodies = Bodies(options["size_bytes"])
    count = options["sources"]
    for source, batch in prefixes(Workload(count, _TURNS, seed=3)):
        sources.publish(source, batch)
    blocks = count * GROUPS * PREFIX_BLOCKS
    for number in range(options["prompts"]):
        tokens = bodies.tokens(number)
        for holder in range(min(HOLDERS, count)):
            source = (number + holder) % count
            for batch in stored_chain(1000 + number, source, tokens):
                sources.publish(source, batch)
            blocks += len(tokens) // 16
    return blocks


class Run:
    """Publishes bursts, each with the blocks of its time."""

    def __init__(self, sources: Sources, options: dict[str, Any]) -> None:
        self._sources = sources
        self._per_burst = options["blocks_per_s"] * options["burst_s"]
        self._burst_s = options["burst_s"]
        workload = Workload(options["sources"], _TURNS, seed=3)
        self._messages = itertools.cycle(list(churn(workload, options["events_per_message"])))
        self.blocks = self.messages = 0
        self._owed = 0.0
        self._began_at = self.next_at = time.monotonic() + self._burst_s

    def burst(self) -> None:
        self._owed += self._per_burst
        while self.blocks < self._owed:
            (source, batch), blocks = next(self._messages)
            self._sources.publish(source, batch)
            self.blocks += blocks
            self.messages += 1
        self.next_at += self._burst_s

    def report(self) -> dict[str, float]:
        lasted_s = max(1e-9, self.next_at - self._began_at)
        return {
            "blocks": self.blocks,
            "blocks_per_s": self.blocks / lasted_s,
            "messages_per_s": self.messages / lasted_s,
            "late_s": time.monotonic() - self.next_at,
        }


def main() -> None:
    options = json.loads(sys.argv[1])
    sources = Sources(options["sources"])
    print(json.dumps({"ports": sources.ports}), flush=True)
    sources.poller.register(sys.stdin.fileno(), zmq.POLLIN)
    run: Run | None = None
    while True:
        wait_s = 1.0 if run is None else max(0.0, run.next_at - time.monotonic())
        ready = sources.poller.poll(round(wait_s * 1000))
        sources.answer_replays(ready)
        if any(socket == sys.stdin.fileno() for socket, _ in ready):
            command = sys.stdin.readline().strip()
            if command == "store":
                print(json.dumps({"blocks": store(sources, options)}), flush=True)
            elif command == "run":
                run = Run(sources, options)
                print("{}", flush=True)
            elif command == "stop" and run is not None:
                print(msgspec.json.encode(run.report()).decode(), flush=True)
                run = None
            elif not command:
                return
        if run is not None and time.monotonic() >= run.next_at:
            run.burst()


if __name__ == "__main__":
    main()
