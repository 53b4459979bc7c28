"""The tokenizer room's front: a prompt in, its token ids out, within the caller's time.

Owns the cache and the sharing of calls among equal prompts, and their metrics. A prompt of which
enough is known (`known`) can be decided by its prefix, and be tokenized after that. Which endpoint
is asked, and how, is for `asking`. Lives on one event loop; not thread-safe.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.logs import Spells, StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.asking import Asker
from aibrix_extproc.tokenizer.cache import TokenCache
from aibrix_extproc.tokenizer.client import Client
from aibrix_extproc.tokenizer.flights import Flight, Flights
from aibrix_extproc.tokenizer.known import KnownPrefixes, conversation_bytes
from aibrix_extproc.tokenizer.request import truncated
from aibrix_extproc.tokenizer.types import REASONS, Prefix, Reason, TokenizerUnavailable, Tokens

__all__ = ["REASONS", "Prefix", "Reason", "TokenizerPool", "TokenizerUnavailable", "Tokens"]

MAX_LATER: Final = 256
"""Prompts tokenized after their decision at one time. More are dropped: they teach nothing."""

_SPEED = "tokenizer speed"


class TokenizerPool:
    """Tokens of prompts, from the cache, an equal prompt's call, or a tokenizer.

    `start` and `close` on the event loop that uses it. Its calls may outlive the requests that
    began them, for at most the tokenizer's time-out; their bodies count against
    `max_inflight_bytes` of their own.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cache = TokenCache(settings.tokenizer_cache_bytes - conversation_bytes(settings))
        self._known = KnownPrefixes(settings, metrics)
        self._later = 0
        self._flights = Flights(settings.max_streams, settings.max_inflight_bytes)
        self._client: Client | None = None
        self._asker: Asker | None = None
        self._generation = 0
        self._last_late = float("-inf")
        self._states = StateLog(logging.getLogger("aibrix_extproc.tokenizer"))
        self._spells = Spells(logging.getLogger("aibrix_extproc.tokenizer"))
        look_ups = metrics.tokenizer_cache
        self._hits, self._misses, self._joined = (
            look_ups.labels(result) for result in ("hit", "miss", "shared")
        )

    async def start(self) -> None:
        """Open the client. Nothing is connected before the first prompt."""
        self._client = Client()
        self._asker = Asker(self._client, self._settings, self._metrics)

    async def close(self) -> None:
        """Cancel what is under way (its waiters get CLOSED) and close all connections."""
        asker, self._asker = self._asker, None
        await self._flights.close()
        if asker is not None:
            await asker.close()
        if self._client is not None:
            await self._client.close()

    async def tokenize(self, prompt: Prompt, pods: Sequence[str], deadline_s: float) -> Tokens:
        """The token ids of a prompt.

        `pods` are addresses (`ip:port`) of ready pods of its model, `deadline_s` the seconds
        that the caller can wait. Raises TokenizerUnavailable. Cancelling it is safe.
        """
        found = self.cached(prompt)
        if found is not None:
            return found
        if self._asker is None:
            raise self._unavailable(Reason.CLOSED)
        if deadline_s <= 0:
            raise self._unavailable(Reason.DEADLINE)
        flight = self._flights.get(prompt.cache_key)
        shared = flight is not None
        (self._joined if shared else self._misses).inc()
        try:
            if flight is None:
                flight = self._begin(self._asker, prompt, pods)
            tokens = await self._flights.wait(flight, deadline_s)
        except TokenizerUnavailable as unavailable:
            if unavailable.reason in (Reason.DEADLINE, Reason.TOO_MANY, Reason.CLOSED):
                self._unavailable(unavailable.reason)
            raise
        self._in_time()
        return replace(tokens, source="shared") if shared else tokens

    def cached(self, prompt: Prompt) -> Tokens | None:
        """The tokens that need no call: of a prompt that is ids already, or in the cache."""
        if prompt.token_ids is not None:
            return Tokens(truncated(prompt.token_ids, prompt), "body")
        ids = self._cache.get(prompt.cache_key, time.monotonic())
        if ids is None:
            return None
        self._hits.inc()
        return Tokens(ids, "cache")

    def prefix(self, prompt: Prompt, *, counts: bool = True) -> Prefix | None:
        """The known prefix of a prompt that is not in the cache, where it is enough to decide by.

        Then `tokenize_later` should follow, so that the next prompt is known further.
        """
        return self._known.prefix(prompt, counts=counts)

    def tokenize_later(
        self, prompt: Prompt, pods: Sequence[str], then: Callable[[Tokens], None]
    ) -> None:
        """Tokenize in the background, and hand the tokens to `then`. Nobody waits for it.

        Bounded: above MAX_LATER, or where no call may begin, it is dropped and counted.
        """
        count = self._metrics.tokenized_later.labels
        flight = self._flights.get(prompt.cache_key)
        if flight is None:
            if self._asker is None or self._later >= MAX_LATER:
                self._dropped_later()
                return
            try:
                flight = self._begin(self._asker, prompt, pods)
            except TokenizerUnavailable:
                self._dropped_later()
                return
        flight.kept = True

        def ended(task: "asyncio.Task[Tokens]") -> None:
            self._later -= 1
            if task.cancelled() or task.exception() is not None:
                count("failed").inc()
                return
            count("done").inc()
            then(task.result())

        self._later += 1
        assert flight.task is not None  # noqa: S101 - set by start
        flight.task.add_done_callback(ended)

    def _dropped_later(self) -> None:
        self._metrics.tokenized_later.labels("dropped").inc()
        self._spells.seen("prompts decided by a prefix are not tokenized", "too many wait for it")

    def flush(self, models: Collection[str] | None = None) -> None:
        """Forget all tokens and conversations, or those of prompts for these models.

        Calls under way, whatever their model, still answer, but are not kept.
        """
        self._generation += 1
        if models is None:
            self._cache.clear()
        else:
            self._cache.drop_models(models)
        self._known.flush(models)
        self._metrics.tokenizer_cache_bytes.set(self._cache.bytes)

    def _begin(self, asker: Asker, prompt: Prompt, pods: Sequence[str]) -> Flight:
        generation = self._generation
        glimpse = self._known.glimpse(prompt)

        async def call(flight: Flight) -> Tokens:
            tokens = await asker.ask(prompt, pods, flight.is_awaited)
            if generation == self._generation:
                self._cache.put(prompt.cache_key, tokens.ids, time.monotonic(), prompt.model)
                self._metrics.tokenizer_cache_bytes.set(self._cache.bytes)
                self._known.learn(prompt, glimpse, tokens.ids)
            return tokens

        return self._flights.start(prompt.cache_key, len(prompt.body), call)

    def _unavailable(self, reason: Reason) -> TokenizerUnavailable:
        """Count what no call counted, and tell once that answers come too late."""
        self._metrics.tokenizer_failures.labels(reason.value).inc()
        if reason is Reason.DEADLINE:
            self._last_late = time.monotonic()
            self._states.changed(_SPEED, "too slow", "prompts are routed by load")
        return TokenizerUnavailable(reason)

    def _in_time(self) -> None:
        if time.monotonic() - self._last_late >= self._settings.tokenizer_breaker_cooldown_s:
            self._states.changed(_SPEED, "ok")
