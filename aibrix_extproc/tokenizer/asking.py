"""How a prompt becomes tokens over HTTP: render or tokenize, and another endpoint on a failure.

Owns the meaning of each answer for the endpoint that gave it (breaker, unknown model, no
render), with its metric and log line. Knows nothing of caching or of who waits.
"""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from aibrix_extproc.errors import printable
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.breaker import BreakerState
from aibrix_extproc.tokenizer.client import CallFailed, Client, Reply
from aibrix_extproc.tokenizer.endpoints import Endpoint, Endpoints
from aibrix_extproc.tokenizer.race import Race
from aibrix_extproc.tokenizer.request import (
    TOKENIZE_PATH,
    BadReply,
    OtherReply,
    is_model_error,
    read_rendered,
    read_tokenized,
    render_path,
    tokenize_body,
)
from aibrix_extproc.tokenizer.types import Reason, TokenizerUnavailable, Tokens

MAX_FAILURES: Final = 3
"""Of one prompt: the first endpoint that fails or stands still, and two more."""

_ABOUT_THE_BODY: Final = (400, 413, 422)
_NOT_OFFERED: Final = (401, 403, 404, 405, 501)
"""Answers of an engine that does not offer `/render`; with an API key set, `/v1/` needs it."""


class _ModelUnknown(Exception):
    """The endpoint does not serve the model."""


class Asker:
    """Asks endpoints for the tokens of one prompt at a time; many may be under way."""

    def __init__(self, client: Client, settings: Settings, metrics: Metrics) -> None:
        self._client = client
        self._timeout_s = settings.tokenizer_timeout_s
        self._recovery_s = settings.tokenizer_breaker_cooldown_s
        self._decision_s = settings.decision_timeout_s
        self._render = settings.tokenizer_render
        self._exclude_tools = settings.exclude_tools_when_tool_choice_none
        self._endpoints = Endpoints(
            settings.tokenizer_endpoint,
            settings.tokenizer_breaker_failures,
            settings.tokenizer_breaker_cooldown_s,
        )
        self._calls: set[asyncio.Task[Tokens]] = set()
        self._metrics = metrics
        self._latency = {
            api: metrics.tokenizer_latency.labels(api) for api in ("render", "tokenize")
        }
        self._states = StateLog(logging.getLogger("aibrix_extproc.tokenizer"))

    async def close(self) -> None:
        """Cancel every call, those included for which nobody waits."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def ask(
        self, prompt: Prompt, pods: Sequence[str], is_awaited: Callable[[], bool]
    ) -> Tokens:
        """The tokens, from the first endpoint that gives them.

        After a failure another is tried, and where one stands still another is asked beside it;
        up to MAX_FAILURES, as long as `is_awaited`. An endpoint that does not know the model
        costs no such try. Raises TokenizerUnavailable.
        """
        race = Race(self._decision_s)
        tried: set[str] = set()
        failures = 0
        last: CallFailed | None = None
        unknown = False
        reason = self._enter(race, prompt, pods, tried)
        try:
            while True:
                if not race:
                    raise self._nobody_left(reason, last, unknown)
                try:
                    ended = await race.next()
                except _ModelUnknown:
                    unknown = True
                except CallFailed as failure:
                    last = failure
                    failures += 1
                else:
                    if isinstance(ended, Tokens):
                        return ended
                    self._stand_still(ended)
                tries_left = failures + race.stalls < MAX_FAILURES
                has_trouble = last is not None or race.stalls > 0
                if not has_trouble or (tries_left and is_awaited()):
                    reason = self._enter(race, prompt, pods, tried)
        finally:
            race.leave()

    def _enter(
        self, race: Race, prompt: Prompt, pods: Sequence[str], tried: set[str]
    ) -> Reason | None:
        """Begin a call of the next endpoint, or say why there is none to be asked."""
        now = time.monotonic()
        self._endpoints.sweep(now, self._forgotten)
        chosen = self._endpoints.choose(prompt.model, pods, tried, now)
        if isinstance(chosen, Reason):
            return chosen
        tried.add(chosen.url)
        call = race.enter(chosen, self._attempt(chosen, prompt))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        return None

    def _ended(self, call: "asyncio.Task[Tokens]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # of one that lost its race: seen, so that asyncio does not complain

    def _nobody_left(
        self, reason: Reason | None, last: CallFailed | None, unknown: bool
    ) -> TokenizerUnavailable:
        """The error to raise; what an attempt said goes before what is remembered."""
        if last is not None:
            return TokenizerUnavailable(last.reason, last.detail)
        if unknown:
            return TokenizerUnavailable(Reason.MODEL_UNKNOWN)
        assert reason is not None  # noqa: S101 - else a call would be under way, or have failed
        self._count(reason)
        return TokenizerUnavailable(reason)

    async def _attempt(self, endpoint: Endpoint, prompt: Prompt) -> Tokens:
        """One endpoint's answer. Raises CallFailed, _ModelUnknown, and what `ask` raises."""
        began = time.monotonic()
        endpoint.in_flight += 1
        endpoint.breaker.begin()
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    tokens = await self._tokens(endpoint, prompt)
            except TimeoutError:
                raise CallFailed(Reason.TIMEOUT, f"no reply within {self._timeout_s} s") from None
        except CallFailed as failure:
            self._failed(endpoint, failure, began)
            raise
        except _ModelUnknown:
            self._answered(endpoint, began)
            self._model_unknown(endpoint, prompt.model)
            raise
        except TokenizerUnavailable:
            self._answered(endpoint, began)
            raise
        except BaseException:  # cancelled, mostly: it says nothing of the endpoint
            endpoint.breaker.abandon(time.monotonic())
            raise
        finally:
            endpoint.in_flight -= 1
        self._answered(endpoint, began)
        self._model_known(endpoint, prompt.model)
        return tokens

    async def _tokens(self, endpoint: Endpoint, prompt: Prompt) -> Tokens:
        path = render_path(prompt) if self._render else None
        if path is not None and endpoint.renders(path, time.monotonic()):
            rendered = await self._rendered(endpoint, path, prompt)
            if rendered is not None:
                return Tokens(rendered, "render")
        body = tokenize_body(prompt, exclude_tools=self._exclude_tools)
        reply = await self._call("tokenize", endpoint, TOKENIZE_PATH, body)
        if reply.status in _ABOUT_THE_BODY:
            self._count(Reason.REJECTED)
            raise TokenizerUnavailable(Reason.REJECTED, f"status {reply.status}")
        if reply.status == 404 and is_model_error(reply.body):
            raise _ModelUnknown()
        if reply.status != 200:
            raise CallFailed(Reason.STATUS, f"status {reply.status} of {TOKENIZE_PATH}")
        try:
            return Tokens(read_tokenized(reply.body, prompt), "tokenize")
        except BadReply:
            raise CallFailed(Reason.GARBAGE, f"no tokens in the reply of {TOKENIZE_PATH}") from None

    async def _rendered(self, endpoint: Endpoint, path: str, prompt: Prompt) -> "array[int] | None":
        """The exact ids, or None where `/tokenize` must be asked (counted)."""
        try:
            reply = await self._call("render", endpoint, path, prompt.body)
        except CallFailed as failure:
            if failure.reason is not Reason.TOO_LARGE:  # media are sent back, megabytes of them
                raise
            self._count(Reason.RENDER_FAILED)
            return None
        if reply.status == 404 and is_model_error(reply.body):
            raise _ModelUnknown()
        if reply.status in _NOT_OFFERED:
            self._no_render(endpoint, path, f"status {reply.status}")
            return None
        if reply.status != 200:
            self._count(Reason.RENDER_FAILED)
            return None
        try:
            return read_rendered(reply.body, prompt)
        except OtherReply:
            self._no_render(endpoint, path, "its reply has another form")
            return None
        except BadReply:
            raise CallFailed(Reason.GARBAGE, f"no tokens in the reply of {path}") from None

    async def _call(self, api: str, endpoint: Endpoint, path: str, body: bytes) -> Reply:
        started = time.monotonic()
        try:
            url = endpoint.at(path)
        except ValueError:
            raise CallFailed(Reason.REFUSED, "its address is no URL") from None
        reply = await self._client.post(url, body)
        self._latency[api].observe(time.monotonic() - started)
        return reply

    def _stand_still(self, endpoints: Sequence[Endpoint]) -> None:
        """They answer nothing: left alone until a trial, or a call under way, is answered."""
        now = time.monotonic()
        for endpoint in endpoints:
            if not endpoint.breaker.allows(now) and endpoint.breaker.state is BreakerState.OPEN:
                continue
            self._count(Reason.STALLED)
            endpoint.breaker.trip(now)
            endpoint.last_failure = now
            why = f"{Reason.STALLED}: it takes calls and answers none"
            self._states.changed(_name(endpoint), "left alone for a while", why)
        self._gauge()

    def _failed(self, endpoint: Endpoint, failure: CallFailed, began: float) -> None:
        now = time.monotonic()
        if failure.reason is not Reason.TIMEOUT:
            endpoint.answered(began, now)
        self._count(failure.reason)
        endpoint.breaker.fail(now)
        endpoint.last_failure = now
        is_asked = endpoint.breaker.state is BreakerState.CLOSED
        state = "failing" if is_asked else "left alone for a while"
        why = f"{failure.reason}: {failure.detail}"
        if self._states.changed(_name(endpoint), state, why):
            self._gauge()

    def _answered(self, endpoint: Endpoint, began: float) -> None:
        """It works. Said in the log only after a while, lest one that wavers fill it."""
        was_left_alone = endpoint.breaker.state is not BreakerState.CLOSED
        endpoint.answered(began, time.monotonic())
        endpoint.breaker.succeed()
        if was_left_alone:
            self._gauge()
        if time.monotonic() - endpoint.last_failure >= self._recovery_s:
            self._states.changed(_name(endpoint), "ok")

    def _model_unknown(self, endpoint: Endpoint, model: str) -> None:
        self._count(Reason.MODEL_UNKNOWN)
        endpoint.forget_model(model, time.monotonic())
        self._states.changed(_model_name(endpoint, model), "unknown there", "asked elsewhere")

    def _model_known(self, endpoint: Endpoint, model: str) -> None:
        if endpoint.unknown_models.pop(model, None) is not None:
            self._states.changed(_model_name(endpoint, model), "ok")

    def _no_render(self, endpoint: Endpoint, path: str, why: str) -> None:
        self._count(Reason.NO_RENDER)
        endpoint.forget_render(path, time.monotonic())
        self._states.changed(
            _name(endpoint) + path, "not offered", f"{why}; /tokenize is asked", logging.INFO
        )

    def _forgotten(self, endpoint: Endpoint) -> None:
        self._states.forget(_name(endpoint))
        for path in endpoint.no_render:
            self._states.forget(_name(endpoint) + path)
        for model in endpoint.unknown_models:
            self._states.forget(_model_name(endpoint, model))
        self._gauge()

    def _gauge(self) -> None:
        self._metrics.tokenizer_breaker_open.set(self._endpoints.open_breakers())

    def _count(self, reason: Reason) -> None:
        self._metrics.tokenizer_failures.labels(reason.value).inc()


def _name(endpoint: Endpoint) -> str:
    return f"tokenizer {endpoint.url}"


def _model_name(endpoint: Endpoint, model: str) -> str:
    return f"model {printable(model)} at {_name(endpoint)}"
