"""The gRPC side of a stream: reads messages, carries out effects, counts what became of it.

Owns the options of the server, the set of open streams and their limit. The rules of a stream
are in `stream`, decisions behind `Decides`. One stream is one coroutine: a decision is awaited
in it, so a client that leaves cancels both.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from aibrix_extproc.errors import BodyModeUnsupported, RequestError, SettingsError, TooManyStreams
from aibrix_extproc.extproc.decides import Decides, Outcome, Passed, RouteRequest
from aibrix_extproc.extproc.effects import (
    Abort,
    Decide,
    Effect,
    Observed,
    PrefillDone,
    Release,
    Reply,
    Settled,
)
from aibrix_extproc.extproc.inflight import InflightBytes
from aibrix_extproc.extproc.messages import Picks
from aibrix_extproc.extproc.stream import Stream
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.logs import Spells, StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
"""Envoy's name of the service; the stubs' own package has another."""

_MIB: Final = 1024 * 1024
_CALM_SHARE: Final = 0.5
"""Of the limit of streams: below it the trouble is said to be over. A number that wavers about the
limit would else fill the log."""

_PASSED_IN_TROUBLE: Final = ("pods_not_listed", "no_headers", "no_body", "internal_error")

_log = logging.getLogger(__name__)


def make_server(settings: Settings) -> grpc.aio.Server:
    """A server without services: messages may be 1 MiB above the limit of a body.

    Pings of any frequency are accepted, so that an Envoy with `connection_keepalive` is not told
    to go away; a second process on the same port is an error, not a share of the load.
    """
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes + _MIB),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            ("grpc.http2.max_ping_strikes", 0),
        ]
    )


def listen(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Bind `host:port`, in plain text without credentials, and return the port.

    Raises SettingsError where that cannot be.
    """
    try:
        if credentials is None:
            port = int(server.add_insecure_port(address))
        else:
            port = int(server.add_secure_port(address, credentials))
    except RuntimeError:
        port = 0
    if port == 0:
        raise SettingsError(
            f"AIBRIX_EXTPROC_GRPC_ADDRESS: {address} cannot be bound (in use, or not ours)"
            + (", or gRPC does not take the certificate" if credentials else "")
        )
    return port


class _Open:
    """One open stream, and the task that serves it."""

    __slots__ = ("answered_at_s", "ending", "reading", "stream", "task")

    def __init__(self, stream: Stream, task: "asyncio.Task[Any] | None") -> None:
        self.stream = stream
        self.task = task
        self.reading = False
        """True while it waits for Envoy: only then can it be ended from outside."""
        self.ending = False
        self.answered_at_s = 0.0
        """Monotonic time at which the last message had been answered."""


class Processor:
    """Envoy's ExternalProcessor. Lives on one event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        decides: Decides,
        *,
        make_stream: Callable[..., Stream] = Stream,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._decides = decides
        self._make_stream = make_stream
        self._inflight = InflightBytes(settings.max_inflight_bytes)
        self._picks = Picks()
        self._open: set[_Open] = set()
        self._draining = False
        self._kv_sync = str(settings.kv_event_sync).lower()
        self._states = StateLog(_log)
        self._spells = Spells(_log)
        self._outcomes = metrics.children(metrics.requests)
        self._was_full = False
        """No body more could be held, when one was last tried."""
        self._was_crowded = False
        """The limit of streams was reached, and is not yet far again."""
        self._seen_failures: set[tuple[str, str, int]] = set()
        metrics.streams.set_function(lambda: float(len(self._open)))
        metrics.inflight_bytes.set_function(lambda: float(self._inflight.used_bytes))

    @property
    def open_streams(self) -> int:
        """Requests open now."""
        return len(self._open)

    def register(self, server: grpc.aio.Server) -> None:
        """Serve under Envoy's full name, whatever package the stubs are in."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),)
        )

    def end_settled(self) -> int:
        """Drain: end every stream that may end, now and from now on as soon as it may.

        Returns how many are still open: undecided ones, and in duplex those whose echo is not
        complete.
        """
        self._draining = True
        for one in self._open:
            if one.reading and one.stream.may_end and one.task is not None:
                one.ending = True
                one.task.cancel()
        return sum(not one.ending for one in self._open)

    # -- one stream ---------------------------------------------------------------------------

    async def _process(self, _messages: Any, context: Any) -> None:
        stream = self._make_stream(
            self._settings, self._inflight, refusal=self._refusal(), picks=self._picks
        )
        one = _Open(stream, asyncio.current_task())
        self._open.add(one)
        try:
            await self._serve(one, context)
        except asyncio.CancelledError:
            if not one.ending:
                raise
            # Ended by `end_settled`: to return is an OK end.
        finally:
            self._open.discard(one)
            quiet_s = time.monotonic() - one.answered_at_s
            for effect in self._guarded(stream, None, stream.closed, quiet_s):
                self._carry_out(effect)

    async def _serve(self, one: _Open, context: Any) -> None:
        stream = one.stream
        while not (self._draining and stream.may_end):
            one.reading = True
            message = await self._read(context)
            one.reading = False
            if message is grpc.aio.EOF:
                if not stream.may_end:
                    await context.abort(grpc.StatusCode.CANCELLED, "ended before its outcome")
                return
            kind = message.WhichOneof("request")
            effects = self._guarded(stream, kind, stream.receive, message)
            del message  # it holds the body, and the next read may take as long as the answer
            while effects:
                request = await self._send(effects, context)
                effects = await self._decide(stream, kind, request) if request else []
            one.answered_at_s = time.monotonic()

    async def _read(self, context: Any) -> Any:
        """The next message, or EOF. Bytes that are no message end the stream with an error."""
        try:
            return await context.read()
        except DecodeError:
            self._states.changed("messages on this port", "unreadable", "is it Envoy that calls?")
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a message that is no ProcessingRequest"
            )

    async def _send(self, effects: list[Effect], context: Any) -> RouteRequest | None:
        """Carry out effects in order; returns what must be decided, if anything.

        Envoy may leave at any reply: what is to be booked after it is booked all the same.
        """
        left = iter(effects)
        try:
            for effect in left:
                if isinstance(effect, Reply):
                    await context.write(effect.response)
                elif isinstance(effect, Decide):
                    return effect.request
                elif isinstance(effect, Abort):
                    await context.abort(grpc.StatusCode[effect.code], effect.message)
                else:
                    self._carry_out(effect)
        finally:
            for effect in left:
                if not isinstance(effect, Reply | Decide | Abort):
                    self._carry_out(effect)
        return None

    async def _decide(
        self, stream: Stream, kind: str | None, request: RouteRequest
    ) -> list[Effect]:
        outcome: Outcome
        try:
            outcome = await self._decides.decide(request)
        except RequestError as error:
            return self._guarded(stream, kind, stream.refused, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the decision waited for was cancelled, not this stream.
            self._log_failure(error)
            outcome = Passed("internal_error")
        except Exception as error:  # noqa: BLE001  (a broken decision passes the request on)
            self._log_failure(error)
            outcome = Passed("internal_error")
        return self._guarded(stream, kind, stream.decided, outcome)

    def _guarded(
        self, stream: Stream, kind: str | None, step: Callable[..., list[Effect]], *given: Any
    ) -> list[Effect]:
        """The effects of a step; where it breaks, those of going on without it."""
        try:
            return step(*given)
        except Exception as error:  # noqa: BLE001
            self._log_failure(error)
            return stream.failed(kind)

    # -- what is counted ----------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        """The effects that send nothing. What cannot be booked costs no request."""
        try:
            if isinstance(effect, PrefillDone):
                self._decides.prefill_done(effect.ticket, effect.served_by, effect.succeeded)
            elif isinstance(effect, Observed):
                self._decides.observed(effect.ticket, effect.found)
            elif isinstance(effect, Release):
                self._decides.release(effect.ticket)
            elif isinstance(effect, Settled):
                self._count(effect)
        except Exception as error:  # noqa: BLE001
            self._log_failure(error)

    def _count(self, settled: Settled) -> None:
        self._outcomes.of(settled.outcome).inc()
        if settled.outcome == "passed":
            self._metrics.passed.labels(settled.reason).inc()
            is_trouble = settled.reason in _PASSED_IN_TROUBLE
            level = logging.WARNING if is_trouble else logging.INFO
            self._spells.seen(f"requests pass on without a pick ({settled.reason})", level=level)
        full = settled.reason == "inflight_bytes"
        if full or (self._was_full and settled.outcome == "picked"):
            self._was_full = full
            self._states.changed("bodies held at once", "over the limit" if full else "ok")
        error = settled.error
        if error is not None:
            model = self._metrics.models.of(error.model_label)
            labels = (model, error.reason, self._kv_sync)
            self._metrics.routing_errors.labels(*labels).inc()
            if isinstance(error, BodyModeUnsupported):
                self._states.changed("Envoy's body mode", "unusable", error.message)

    def _refusal(self) -> RequestError | None:
        limit = self._settings.max_streams
        if len(self._open) >= limit:
            self._was_crowded = True
            self._states.changed("open requests", "at the limit", f"limit {limit}")
            return TooManyStreams(limit)
        if self._was_crowded and len(self._open) < _CALM_SHARE * limit:
            self._was_crowded = False
            self._states.changed("open requests", "ok")
        return None

    def _log_failure(self, error: BaseException) -> None:
        """The traceback, once per kind: the type and where it was raised."""
        self._metrics.faults.labels("request").inc()
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = (last.tb_frame.f_code.co_filename, last.tb_lineno) if last else ("", 0)
        kind = (type(error).__name__, *place)
        if kind not in self._seen_failures:
            self._seen_failures.add(kind)
            _log.error(
                "internal error; the request goes on without a pick, or without its load being "
                "booked (told once per kind)",
                exc_info=error,
            )
