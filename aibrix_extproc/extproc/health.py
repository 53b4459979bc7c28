"""gRPC health, under every name that someone asks for.

Owns the names. `liveness` is SERVING while the process lives; the others follow
`set_serving`. What makes the server ready is for `app`.
"""

from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LIVENESS: Final = "liveness"
READINESS_NAMES: Final = (
    "",
    "readiness",
    "envoy.service.ext_proc.v3.ExternalProcessor",
    "inference-extension",
)
"""Kubernetes' probes, Envoy's health check, and the Gateway API Inference Extension's."""


class Health:
    """The health service. NOT_SERVING until told otherwise. Lives on one event loop."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()
        self.serving: bool | None = None
        """None: nothing is said yet."""
        self._leaving = False

    async def start(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that is not started yet."""
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(False)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_serving(self, serving: bool) -> None:
        """Whether Envoy should send requests here; watchers are told at once. Not after `leave`."""
        serving = serving and not self._leaving
        if serving is self.serving:
            return
        self.serving = serving
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in READINESS_NAMES:
            await self._servicer.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def leave(self) -> None:
        """NOT_SERVING for good: a server that drains is never ready again."""
        self._leaving = True
        await self.set_serving(False)
