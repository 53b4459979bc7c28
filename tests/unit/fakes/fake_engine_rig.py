"""An engine over real HTTP and ZMQ, and an index of its events that counts copies."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgpack
import zmq

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.publisher import EventPublisher
from tests.support import eventually_async

END = b"\xff" * 8


@dataclass
class Copies:
    """What a rank holds by its events: copies per hash, and each block's ingredients → hash."""

    copies: Counter[object] = field(default_factory=Counter)
    names: dict[object, object] = field(default_factory=dict)
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def apply(self, payload: bytes) -> None:
        for message in msgpack.unpackb(payload)[1]:
            event = message if isinstance(message, dict) else named(message)
            self.events.append(event)
            if event["type"] == "AllBlocksCleared":
                self.copies.clear()
            elif event["type"] == "BlockRemoved":
                self.copies.subtract(event["block_hashes"])
            else:
                self._store(event)

    def _store(self, event: Mapping[str, Any]) -> None:
        parent, size = event["parent_block_hash"], event["block_size"]
        for index, name in enumerate(event["block_hashes"]):
            tokens = tuple(event["token_ids"][index * size : (index + 1) * size])
            extras = tuple(event["extra_keys"][index] or ())
            self.names[(parent, tokens, extras)] = name
            self.copies[name] += 1
            parent = name

    def cached_tokens(
        self, tokens: list[int], size: int, adapter: str | None = None, salt: str | None = None
    ) -> int:
        """What the engine should reuse of a prompt."""
        depth, parent = 0, None
        for index in range((len(tokens) - 1) // size):
            extras = (adapter,) if adapter else ()
            if salt and not index:
                extras = (*extras, salt)
            block = tuple(tokens[index * size : (index + 1) * size])
            name = self.names.get((parent, block, extras))
            if name is None or self.copies[name] < 1:
                break
            depth, parent = depth + 1, name
        return depth * size


def named(message: list[Any]) -> dict[str, Any]:
    """A tagged array as the map that later versions send."""
    fields = ("type", "block_hashes")
    if message[0] == "BlockStored":
        fields += ("parent_block_hash", "token_ids", "block_size", "lora_id", "medium")
        fields += ("lora_name", "extra_keys")
    return dict(zip(fields, message, strict=False))


class Rig:
    """One engine and a client of it."""

    def __init__(self, engine: FakeEngine, client: aiohttp.ClientSession) -> None:
        self.engine = engine
        self.client = client

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post(path, json=body, headers=names) as reply:
            text = await reply.text()
            return reply.status, json.loads(text) if text else None

    async def ask(self, path: str, body: object, **headers: str) -> Any:
        status, reply = await self.post(path, body, **headers)
        assert status == 200, reply
        return reply

    async def get(self, path: str) -> tuple[int, str]:
        async with self.client.get(path) as reply:
            return reply.status, await reply.text()

    async def tokenize(self, body: object) -> list[int]:
        return list((await self.ask("/tokenize", body))["tokens"])

    async def events(self, rank: int = 0) -> Copies:
        """All that a rank has published so far, by replay from 0."""
        await self.settled(rank)
        context = zmq.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(f"tcp://127.0.0.1:{self.engine.replay_ports[rank]}")
            socket.send_multipart([b"", (0).to_bytes(8, "big")])
            found = Copies()
            while True:
                await eventually_async(lambda: socket.poll(0))
                *_, sequence, payload = socket.recv_multipart()
                if sequence == END:
                    return found
                found.apply(payload)
        finally:
            context.destroy(linger=0)

    async def settled(self, rank: int = 0) -> EventPublisher:
        """The publisher of a rank, once it has sent what it was given."""
        publisher = self.engine.ranks[rank].publisher
        assert publisher is not None
        await eventually_async(lambda: publisher.sent_all)
        return publisher

    async def idle(self) -> None:
        """Until no request is under way."""
        await eventually_async(lambda: not any(rank.load for rank in self.engine.ranks))


@asynccontextmanager
async def rig(**options: Any) -> AsyncIterator[Rig]:
    options = {"block_size": 4, "num_blocks": 512, **options}
    async with (
        FakeEngine(EngineConfig(**options)) as engine,
        aiohttp.ClientSession(f"http://{engine.address}") as client,
    ):
        yield Rig(engine, client)


def cached(reply: Mapping[str, Any]) -> int:
    """What the engine says it reused."""
    return int(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
