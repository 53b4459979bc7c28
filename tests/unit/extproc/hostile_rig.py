"""The real service on the loopback, the real decision behind it, and two pods that tokenize."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
from aiohttp import web

from aibrix_extproc.decide import Decider
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.extproc.service import SERVICE, Processor, listen, make_server
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing.ledger import Ledger
from aibrix_extproc.routing.predictions import Predictions
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.pool import TokenizerPool
from tests.support import eventually_async
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, tokenizer_server

MODEL: Final = "tiny"
PATIENCE_S: Final = 20.0
"""A stream that has not ended by then hangs."""


@dataclass
class HostileRig:
    settings: Settings
    metrics: Metrics
    service: Processor
    ledger: Ledger
    channel: Any

    def open(self) -> Any:
        """A stream whose messages are bytes: those of a client may be no protobuf at all."""
        return self.channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=None,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def held_bytes(self) -> int:
        return int(self.count("aibrix_extproc_inflight_body_bytes"))

    async def nothing_is_left(self, *, ends_were_seen: bool) -> None:
        """All streams are closed, no body is held, nothing is reserved, and nothing broke inside.

        A reservation whose end Envoy did not show leaves by itself: unless all ends were seen, the
        time for that is over here.
        """
        await eventually_async(lambda: self.service.open_streams == 0)
        await eventually_async(lambda: self.held_bytes() == 0)
        if not ends_were_seen:
            self.ledger.expire(time.monotonic() + self.settings.reservation_limit_s)
        await eventually_async(lambda: len(self.ledger) == 0)
        assert self.count("aibrix_extproc_passed_total", reason="internal_error") == 0


@contextmanager
def ends_allowed() -> Iterator[None]:
    """The stream may end at any point within: its code tells how. A test that is itself
    cancelled is not to go on."""
    try:
        yield
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        pass
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise


async def drain(call: Any, replies: list[pb.ProcessingResponse]) -> grpc.StatusCode:
    """Read all replies until the stream ends, and how it ended. Fails where it does not."""
    async with asyncio.timeout(PATIENCE_S):
        with ends_allowed():
            while (reply := await call.read()) is not grpc.aio.EOF:
                replies.append(reply)
        code: grpc.StatusCode = await call.code()
        return code


def answers_as_an_engine(server: TokenizerServer) -> None:
    """What cannot be read is the client's fault, and the answer 400, as vLLM's."""
    plain = server.tokenize

    async def tokenize(request: web.Request) -> web.StreamResponse:
        try:
            return await plain(request)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return server.error(400, "There was an error parsing the body")

    server.tokenize = tokenize


@asynccontextmanager
async def hostile_rig(**settings: Any) -> AsyncIterator[HostileRig]:
    chosen = Settings(use_remote_tokenizer=True, **settings)
    metrics = Metrics()
    registry = Registry(metrics)
    index = PrefixIndex()
    predictions = Predictions(chosen.prediction_max_blocks)
    ledger = Ledger(chosen.reservation_limit_s)
    manager = SourceManager(index, chosen, metrics, predictions.drop, ledger.forget)
    registry.subscribe(manager.on_pod)
    pool = TokenizerPool(chosen, metrics)
    decider = Decider(chosen, metrics, registry, manager, index, pool, ledger, predictions,
                      rng=Random(1))  # fmt: skip
    server = make_server(chosen)
    service = Processor(chosen, metrics, decider)
    service.register(server)
    port = listen(server, "127.0.0.1:0")
    await pool.start()
    manager.start_events()
    await server.start()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        async with tokenizer_server(MODEL) as one, tokenizer_server(MODEL) as two:
            answers_as_an_engine(one)
            answers_as_an_engine(two)
            pods = [Pod("default", f"p{n}", f"uid-{n}", address, MODEL)
                    for n, address in enumerate((one.address, two.address))]  # fmt: skip
            registry.replace(pods)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                yield HostileRig(chosen, metrics, service, ledger, channel)
    finally:
        await server.stop(0)
        await pool.close()
        await asyncio.to_thread(manager.close)
