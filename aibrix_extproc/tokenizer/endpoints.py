"""Which tokenizer to ask: what is remembered of each endpoint, and the choice among them.

Owns the breakers, the calls under way, the models an endpoint does not know and the paths it
does not offer. Does no input or output; the clock is the `now` that is passed in. Endpoints
that nobody named for a while are forgotten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from aibrix_extproc.tokenizer.breaker import Breaker, BreakerState
from aibrix_extproc.tokenizer.types import Reason

UNKNOWN_MODEL_S: Final = 60.0
"""How long a model that an endpoint did not know is asked for elsewhere."""

NO_RENDER_S: Final = 300.0
"""How long an endpoint without `/render` is not asked for it again: it may have been upgraded."""

FORGET_AFTER_S: Final = 600.0
MAX_ENDPOINTS: Final = 4096
_FADING: Final = 0.9
"""Of `slowest_s` with each answer: a long prompt is forgotten after some twenty short ones."""
_MAX_UNKNOWN_MODELS: Final = 256  # of one endpoint
_SWEEP_S: Final = 60.0


@dataclass(slots=True)
class Endpoint:
    """One base URL and what is known of it."""

    url: str
    breaker: Breaker
    urls: dict[str, URL] = field(default_factory=dict)
    """Path → URL, made once."""
    in_flight: int = 0
    unknown_models: dict[str, float] = field(default_factory=dict)
    """Model → until when it is taken to be unknown."""
    no_render: dict[str, float] = field(default_factory=dict)
    """Path of a render → until when it is taken not to exist."""
    last_used: float = 0.0
    last_failure: float = float("-inf")
    last_answer: float = float("-inf")
    """When a call of it last ended with a reply, whatever it said."""
    slowest_s: float = 0.0
    """About the longest that its calls took of late."""
    has_witness: bool = False
    """A call goes on there for which nobody waits, to see whether it answers at all."""

    def at(self, path: str) -> URL:
        """The full URL of a path of this endpoint."""
        url = self.urls.get(path)
        if url is None:
            url = self.urls[path] = URL(self.url + path)
        return url

    def renders(self, path: str, now: float) -> bool:
        """Whether a render may be asked for at `path`."""
        return now >= self.no_render.get(path, now)

    def forget_render(self, path: str, now: float) -> None:
        """It does not offer that path."""
        self.no_render[path] = now + NO_RENDER_S

    def knows(self, model: str, now: float) -> bool:
        """False where it said lately that it does not serve the model."""
        return now >= self.unknown_models.get(model, now)

    def answered(self, began: float, now: float) -> None:
        """A call that began at `began` got a reply."""
        self.last_answer = now
        self.slowest_s = max(now - began, _FADING * self.slowest_s)

    def stands_still(self, began: float, now: float, stall_s: float, most_s: float) -> bool:
        """Whether a call that began at `began` waits at an endpoint that hangs.

        It does where nothing at all was answered for `stall_s`, or for twice as long as its calls
        took of late, up to `most_s`. So what is merely slow, or works off a queue, does not.
        """
        patience_s = min(max(stall_s, 2 * self.slowest_s), most_s)
        return now - max(began, self.last_answer) >= patience_s

    def forget_model(self, model: str, now: float) -> None:
        """It does not serve the model."""
        if len(self.unknown_models) >= _MAX_UNKNOWN_MODELS:
            self.unknown_models.clear()
        self.unknown_models[model] = now + UNKNOWN_MODEL_S


class Endpoints:
    """All endpoints. `first` is the configured one, asked before any pod; empty for none."""

    def __init__(self, first: str, failures: int, cooldown_s: float) -> None:
        self._first = first
        self._failures = failures
        self._cooldown_s = cooldown_s
        self._known: dict[str, Endpoint] = {}
        self._turn = 0
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._known)

    def open_breakers(self) -> int:
        """Endpoints that are left alone now, or tried for the first time since."""
        return sum(e.breaker.state is not BreakerState.CLOSED for e in self._known.values())

    def choose(
        self, model: str, pods: Sequence[str], tried: set[str], now: float
    ) -> Endpoint | Reason:
        """The endpoint to ask next, or why there is none.

        The configured one first; else the pod (`ip:port`) with the fewest calls under way,
        taking turns, so that one that hangs is passed by. Not those in `tried` (base URLs),
        those that do not know the model, or whose breaker is open.
        """
        reason = Reason.NO_ENDPOINT
        if self._first and self._first not in tried:
            first = self._endpoint(self._first, now)
            refusal = _refusal(first, model, now)
            if refusal is None:
                return first
            reason = refusal
        best = None
        self._turn += 1
        for i in range(len(pods)):
            url = f"http://{pods[(self._turn + i) % len(pods)]}"
            if url in tried:
                continue
            endpoint = self._endpoint(url, now)
            refusal = _refusal(endpoint, model, now)
            if refusal is not None:
                reason = refusal
            elif best is None or endpoint.in_flight < best.in_flight:
                best = endpoint
                if best.in_flight == 0:
                    break
        return best or reason

    def sweep(self, now: float, forgotten: Callable[[Endpoint], None]) -> None:
        """Drop what nobody named for FORGET_AFTER_S, and the oldest above MAX_ENDPOINTS."""
        if now < self._next_sweep and len(self._known) <= MAX_ENDPOINTS:
            return
        self._next_sweep = now + _SWEEP_S
        idle = sorted((e for e in self._known.values() if not e.in_flight), key=_last_used)
        excess = len(self._known) - MAX_ENDPOINTS
        for position, endpoint in enumerate(idle):
            if position >= excess and now - endpoint.last_used <= FORGET_AFTER_S:
                break
            del self._known[endpoint.url]
            forgotten(endpoint)

    def _endpoint(self, url: str, now: float) -> Endpoint:
        endpoint = self._known.get(url)
        if endpoint is None:
            endpoint = Endpoint(url, Breaker(self._failures, self._cooldown_s))
            self._known[url] = endpoint
        endpoint.last_used = now
        return endpoint


def _last_used(endpoint: Endpoint) -> float:
    return endpoint.last_used


def _refusal(endpoint: Endpoint, model: str, now: float) -> Reason | None:
    if not endpoint.knows(model, now):
        return Reason.MODEL_UNKNOWN
    if not endpoint.breaker.allows(now):
        return Reason.BREAKER_OPEN
    return None
