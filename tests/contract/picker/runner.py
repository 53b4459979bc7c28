"""Runs a vector against an endpoint picker and says what was wrong, in words.

Owns the order of a run and the text of a failure. Knows neither pytest nor where the picker came
from.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.picker import matchers, words
from tests.contract.picker.exchange import Exchange, Target, Wire, channel
from tests.contract.picker.steps import Playing, play
from tests.contract.picker.vectors import Mode, Vector


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a vector."""

    failure: str = ""
    """Empty where the rule holds: else the rule, what was wrong, what was sent and what came."""

    @property
    def holds(self) -> bool:
        return not self.failure


def missing_knowledge(vector: Vector, target: Target) -> str:
    """Why a vector cannot be run against this target; empty where it can."""
    unknown = [option for option in vector.needs if not target.knows(option)]
    return f"needs {' and '.join(unknown)}" if unknown else ""


async def run(vector: Vector, mode: Mode, target: Target) -> Verdict:
    """Play Envoy's side of the vector and look at what came."""
    async with channel(target) as connection:
        if vector.steps[0][0] == "health":
            return await _health(vector, target, connection)
        barrier = asyncio.Barrier(vector.streams)
        exchanges = [Exchange(duplex=mode is Mode.DUPLEX) for _ in range(vector.streams)]
        playings = [
            Playing(Wire(connection, exchange, target.timeout_s), target, mode, number)
            for number, exchange in enumerate(exchanges)
        ]
        await asyncio.gather(*(_play_all(vector, playing, barrier) for playing in playings))
        for playing in playings:
            if wrong := _judged(vector, playing):
                return Verdict(_failure(vector, mode, wrong, words.told(playing.exchange)))
        if vector.afterwards == "serves":
            return await _serves(vector, mode, target, connection)
        return Verdict()


async def _play_all(vector: Vector, playing: Playing, barrier: asyncio.Barrier) -> None:
    """All steps; the streams of one vector take each step together."""
    for name, argument in vector.steps:
        await barrier.wait()
        await play(playing, name, argument)
    if vector.steps[-1][0] != "cancel":
        await playing.wire.finish()


def _judged(vector: Vector, playing: Playing) -> str:
    """What is wrong; empty where nothing is."""
    exchange = playing.exchange
    wrong = [f"Envoy waits for {exchange.missing} in vain"] if exchange.missing else []
    for name, argument in vector.expect:
        try:
            matchers.check(exchange, name, playing.filled_in(argument), playing.target)
        except matchers.Mismatch as mismatch:
            wrong.append(str(mismatch))
    return "\n".join(wrong)


async def _serves(vector: Vector, mode: Mode, target: Target, connection: Any) -> Verdict:
    """Whether a plain request is still picked."""
    exchange = Exchange(duplex=mode is Mode.DUPLEX)
    playing = Playing(Wire(connection, exchange, target.timeout_s), target, mode)
    for name, argument in (("headers", {}), ("body", {"prompt": "Are you still there?"})):
        await play(playing, name, argument)
    await playing.wire.finish()
    try:
        matchers.check(exchange, "picked", True, target)
    except matchers.Mismatch as mismatch:
        wrong = f"after it a plain request is not served any more: {mismatch}"
        return Verdict(_failure(vector, mode, wrong, words.told(exchange)))
    return Verdict()


async def _health(vector: Vector, target: Target, connection: Any) -> Verdict:
    stub = health_pb2_grpc.HealthStub(connection)
    expected = dict(vector.expect)["health"]
    for name, argument in vector.steps:
        if name != "health":
            raise KeyError(f"{vector.id}: {name} beside health")
        service = argument["service"]
        asked = f"sent  grpc.health.v1.Health/Check of the service {service!r}"
        try:
            reply = await stub.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=target.timeout_s
            )
        except grpc.aio.AioRpcError as error:
            found = error.code().name
        else:
            found = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        if found != expected:
            wrong = f"expected {expected}; it is {found}"
            return Verdict(_failure(vector, Mode.ANY, wrong, f"{asked}\ngot   {found}"))
    return Verdict()


def _failure(vector: Vector, mode: Mode, wrong: str, told: str) -> str:
    lines = [
        f"{vector.id} [{mode}] does not hold",
        f"rule    {vector.rule}",
        f"source  {vector.source} (level: {vector.level})",
        *(f"wrong   {line}" for line in wrong.splitlines()),
        *told.splitlines(),
    ]
    return "\n".join(lines)
