"""A processor on a real server, and a client that plays Envoy, on the loopback."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from aibrix_extproc.extproc.health import Health
from aibrix_extproc.extproc.service import SERVICE, Processor, listen, make_server
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.unit.extproc.extproc_fixtures import StubDecider


@dataclass
class Rig:
    settings: Settings
    metrics: Metrics
    decider: StubDecider
    server: Any
    service: Processor
    health: Health
    channel: Any

    def open(self) -> Any:
        """A stream, as Envoy opens one per request."""
        return self.channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )()

    def count(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 where it was never counted."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def rig(decider: StubDecider | None = None, **settings: Any) -> AsyncIterator[Rig]:
    """A running server with these settings; everything is stopped at the end."""
    chosen = Settings(**settings)
    metrics = Metrics()
    decider = decider or StubDecider()
    server = make_server(chosen)
    service = Processor(chosen, metrics, decider)
    service.register(server)
    health = Health()
    await health.start(server)
    port = listen(server, "127.0.0.1:0")
    await server.start()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield Rig(chosen, metrics, decider, server, service, health, channel)
    finally:
        await server.stop(0)


def faults_told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Log lines with an exception. Not those of grpc.aio's poller: where a process has had more
    than one event loop, as a test run has, it may read a socket that another loop has emptied
    (BlockingIOError, which asyncio logs; nothing is lost)."""
    return [
        record
        for record in caplog.records
        if record.exc_info and "PollerCompletionQueue" not in record.getMessage()
    ]
