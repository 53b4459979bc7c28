"""What a request asks for, and who may serve it.

Owns the way from a request to a plan: body, model, strategy, candidates. Knows neither tokens nor
loads, and changes nothing.
"""

from random import Random
from typing import Final

import msgspec

from aibrix_extproc.discovery.pods import Pod, ServedModel
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import (
    ModelNotFound,
    NoCandidate,
    NoPodReady,
    RequestError,
    UnknownStrategy,
)
from aibrix_extproc.extproc.decides import Passed, RouteRequest
from aibrix_extproc.extproc.openai import ParsedBody, is_completion_path, parse_body, peek_model
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.routing.selector import parse_selector
from aibrix_extproc.routing.strategies import STRATEGIES, build
from aibrix_extproc.routing.types import Candidate, Strategy
from aibrix_extproc.settings import Settings

MAX_SESSION_BYTES: Final = 256
"""Of a session's name. A longer one is not cut: sessions that begin alike would become one."""


class Plan(msgspec.Struct, frozen=True):
    """What a request asks for, and who may serve it."""

    parsed: ParsedBody
    served: ServedModel
    strategy: Strategy
    candidates: tuple[Candidate, ...]
    session: str | None = None
    """By the client's header; None where there is none that counts."""
    session_ignored: bool = False
    """The client named one that is too long."""

    def addresses(self) -> list[str]:
        """`ip:port` of each candidate's pod, once."""
        return list(dict.fromkeys(candidate.pod.address for candidate in self.candidates))


class Planner:
    """Makes plans. Raises UnknownStrategy where the operator's strategy is none."""

    def __init__(
        self, settings: Settings, registry: Registry, manager: SourceManager, rng: Random
    ) -> None:
        self._registry = registry
        self._manager = manager
        self._default = settings.routing_algorithm
        self._strategies = {name: build(name, settings, rng) for name in STRATEGIES}
        build(self._default, settings, rng)
        self._pods: tuple[Pod, ...] = ()
        self._by_name: dict[str, tuple[Candidate, ...]] = {}
        """All candidates of a name that was asked for, as long as the registry holds `_pods`."""

    def plan(self, request: RouteRequest) -> Plan | Passed:
        """The plan of a request, or why it goes on without a pick.

        Raises RequestError, with the model's label where the model is known.
        """
        parsed = self._read(request)
        if isinstance(parsed, Passed):
            return parsed
        served = self._registry.resolve(parsed.model)
        if served is None:
            if not is_completion_path(request.path):
                return Passed("model_not_known")
            raise ModelNotFound(parsed.model)
        try:
            strategy = self._strategy(request)
            candidates = self._candidates(request, served)
            return Plan(parsed, served, strategy, candidates, *_session(request))
        except RequestError as error:
            error.model_label = served.name
            raise

    def renewed(self, plan: Plan, request: RouteRequest) -> Plan:
        """The plan with the candidates of now: one that went meanwhile has no source any more."""
        try:
            candidates = self._candidates(request, plan.served)
        except RequestError as error:
            error.model_label = plan.served.name
            raise
        return msgspec.structs.replace(plan, candidates=candidates)

    def _strategy(self, request: RouteRequest) -> Strategy:
        """The one that the client names, else the operator's. Raises UnknownStrategy.

        A 400 is for the two paths only: on others a name that does not exist counts as none.
        """
        name = request.headers.get("routing-strategy") or self._default
        strategy = self._strategies.get(name)
        if strategy is not None:
            return strategy
        if is_completion_path(request.path):
            raise UnknownStrategy(name, tuple(STRATEGIES))
        return self._strategies[self._default]

    def _read(self, request: RouteRequest) -> ParsedBody | Passed:
        if not self._registry.listed:
            return Passed("pods_not_listed")
        if is_completion_path(request.path):
            return parse_body(request.path, request.body)
        if not request.path.startswith("/v1/"):
            return Passed("other_path")
        model = peek_model(request.body)
        if model is None:
            return Passed("no_model")
        return ParsedBody(
            model=model,
            prompt=None,
            prompt_bytes=len(request.body),
            cache_salt=None,
            stream=False,
            max_tokens=None,
            report_mode=False,
        )

    def _candidates(self, request: RouteRequest, served: ServedModel) -> tuple[Candidate, ...]:
        """Who may serve it, at least one. Raises NoPodReady and NoCandidate."""
        if request.subset is not None or request.headers.get("external-filter"):
            return self._chosen_candidates(request, served)
        pods = self._registry.pods()
        if pods is not self._pods:  # it makes another tuple after each change
            self._pods = pods
            self._by_name.clear()
        candidates = self._by_name.get(served.name)
        if candidates is None:
            candidates = self._manager.candidates(self._registry.candidates(served))
            if not candidates:
                raise NoPodReady(served.name)
            self._by_name[served.name] = candidates
        return candidates

    def _chosen_candidates(
        self, request: RouteRequest, served: ServedModel
    ) -> tuple[Candidate, ...]:
        """Those that the client's filter and Envoy's subset leave."""
        pods = self._registry.candidates(served)
        if not pods:
            raise NoPodReady(served.name)
        label_selector = request.headers.get("external-filter")
        if label_selector:
            selector = parse_selector(label_selector)
            pods = tuple(pod for pod in pods if selector.matches(pod.labels))
            if not pods:
                raise NoCandidate(
                    "No ready pod of the model matches the header external-filter. "
                    "Widen it, or leave it out."
                )
        if request.subset is not None:
            pods = tuple(pod for pod in pods if pod.address in request.subset)
            if not pods:
                raise NoCandidate("No ready pod of the model is in the subset that Envoy allows.")
        candidates = self._manager.candidates(pods)
        if not candidates:
            raise NoPodReady(served.name)
        return candidates


def _session(request: RouteRequest) -> tuple[str | None, bool]:
    """The session that the client names, and whether it named one that does not count."""
    session = request.headers.get("x-session-id")
    if session is None:
        return None, False
    session = session.strip()
    if len(session.encode("utf-8", "surrogatepass")) > MAX_SESSION_BYTES:
        return None, True
    return session or None, False
