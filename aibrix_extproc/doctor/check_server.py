"""A running processor, by its own pages. Pure.

Owns these codes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.doctor.collect_engines import error_text
from aibrix_extproc.doctor.facts import Answer, Facts, Missing, ServerFacts
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity
from aibrix_extproc.index.backends import Backend
from aibrix_extproc.kvevents.effects import SourceState

AWAY: Final = Code(
    "server-unreachable",
    Area.SERVER,
    Severity.RED,
    "the processor's admin or debug port does not answer",
    "Check the URL, and whether it runs; the debug port answers its own machine or pod alone "
    "(`kubectl port-forward`).",
)
NOT_READY: Final = Code(
    "server-not-ready",
    Area.SERVER,
    Severity.RED,
    "the processor is not ready",
    "It waits for its pods (`pods_listed`: discovery) or their events (`first_sync_done`), or is "
    "about to end (`not_draining`).",
)
REFERENCE: Final = Code(
    "server-index-reference",
    Area.SERVER,
    Severity.YELLOW,
    "the index in plain Python serves, which is far slower",
    "Install where cargo is at hand, or use the image.",
)
SOURCE_PARTIAL: Final = Code(
    "server-source-not-exact",
    Area.SERVER,
    Severity.YELLOW,
    "not all is known of what an engine holds",
    "docs/operations.md has each state, its likely cause and what to do.",
)
SOURCE_LOST: Final = Code(
    "server-source-not-believed",
    Area.SERVER,
    Severity.RED,
    "nothing is believed of what an engine holds: its events do not arrive",
    "Look at the findings on its event port; docs/operations.md has each state.",
)
INDEX_FULL: Final = Code(
    "server-index-full",
    Area.SERVER,
    Severity.YELLOW,
    "the index is at its limit, and leaves blocks out",
    "Raise `AIBRIX_KV_INDEX_MAX_BYTES`.",
)
DISAGREES: Final = Code(
    "server-agreement",
    Area.SERVER,
    Severity.YELLOW,
    "engines do not do what is believed of them",
    "docs/agreement.md has the likely causes.",
)
LEVER: Final = Code(
    "server-lever",
    Area.SERVER,
    Severity.YELLOW,
    "an operator has moved a lever",
    "`/debug/levers` says who and when; move it back when it is no longer needed.",
)
UNPICKED: Final = Code(
    "server-unpicked",
    Area.SERVER,
    Severity.YELLOW,
    "many requests pass on without a pick",
    "docs/metrics.md has each reason of `aibrix_extproc_passed_total`.",
)
UNTOKENIZED: Final = Code(
    "server-untokenized",
    Area.SERVER,
    Severity.YELLOW,
    "many requests are routed without their tokens, by load",
    "docs/metrics.md has each reason of `aibrix_extproc_fallback_total`.",
)
SERVED_ELSEWHERE: Final = Code(
    "server-served-elsewhere",
    Area.SERVER,
    Severity.YELLOW,
    "Envoy serves many requests by other pods than the chosen ones",
    "Check Envoy's engines cluster: its hosts, its health checks, and where it reads the pick.",
)
MODELS_MISSING: Final = Code(
    "server-models",
    Area.SERVER,
    Severity.RED,
    "the processor does not serve a model of the pods that are seen here",
    "It may watch another namespace or read another file: compare the variables.",
)

_SHARE: Final = 0.05
_ENOUGH: Final = 20
_NOT_MEANT: Final = (
    "pods_not_listed",
    "inflight_bytes",
    "no_headers",
    "no_body",
    "internal_error",
    "shadow",
)
"""Reasons of requests that were meant for this server; the others are not for it."""
_BELIEVED: Final = frozenset({SourceState.EXACT, SourceState.PARTIAL, SourceState.SYNCING})


def server(facts: Facts) -> ServerFacts:
    """Its pages. Raises NotLooked."""
    if isinstance(facts.server, Missing):
        raise NotLooked(facts.server.why)
    return facts.server


def _page(answer: Answer | None, name: str) -> Any:
    """A JSON page. Raises NotLooked where it was not asked, or is none."""
    if answer is None:
        raise NotLooked(f"{name} was not asked for")
    try:
        return json.loads(answer.body)
    except ValueError:
        raise NotLooked(f"{name} could not be read") from None


def check_readiness(facts: Facts) -> Iterator[Finding]:
    """It answers, is ready, and serves what is seen here."""
    found = server(facts)
    for name, one in (("the admin port", found.readiness), ("the debug port", found.sources)):
        if one is not None and (one.failure or one.status not in {200, 503}):
            yield AWAY.found(name, f"{name}: {error_text(one)}")
    if found.readiness is None or found.readiness.failure:
        return
    page = _page(found.readiness, "/readyz")
    if not isinstance(page, dict):
        return
    if not page.get("ready"):
        missing = ", ".join(map(str, page.get("missing", ())))
        yield NOT_READY.found("the processor", f"it waits for: {missing}")
    if page.get("index_backend") == Backend.REFERENCE:
        yield REFERENCE.found("the processor", "index_backend is reference")
    yield from _models(facts, found.models)


def _models(facts: Facts, answer: Answer | None) -> Iterator[Finding]:
    if isinstance(facts.pods, Missing) or answer is None or answer.status != 200:
        return
    listed = {str(one.get("id")) for one in _page(answer, "/v1/models").get("data", ())}
    missing = sorted({pod.model for pod in facts.pods.pods} - listed)
    if missing:
        yield MODELS_MISSING.found("the processor", f"not listed: {', '.join(missing)}")


def check_sources(facts: Facts) -> Iterator[Finding]:
    """Each source's state."""
    page = _page(server(facts).sources, "/debug/sources")
    for source in page if isinstance(page, list) else ():
        who = f"{source.get('pod')} rank {source.get('rank')}"
        state = source.get("state")
        if state is None:
            continue  # it sends no events, which check_pods tells
        if source.get("stale") or state not in _BELIEVED:
            stale = ", stale" if source.get("stale") else ""
            yield SOURCE_LOST.found(who, f"{who} is {state}{stale} ({source['event_endpoint']})")
        elif state != SourceState.EXACT:
            yield SOURCE_PARTIAL.found(who, f"{who} is {state}, at batch {source.get('sequence')}")
        if source.get("full"):
            yield INDEX_FULL.found(who, f"blocks of {who} were left out")


def check_agreement(facts: Facts) -> Iterator[Finding]:
    """Warnings of the agreement page, and levers."""
    found = server(facts)
    if found.agreement is None:
        raise NotLooked("--debug was not given")
    models = _page(found.agreement, "/debug/agreement").get("models", {})
    for model, page in models.items():
        for warning in page.get("warnings", ()):
            yield DISAGREES.found(str(model), _told(warning))
        differ = page.get("tokenizers_that_differ")
        if differ:
            yield DISAGREES.found(str(model), f"other tokens at {', '.join(differ['pods'])}")
    for name, lever in _page(found.levers, "/debug/levers").get("levers", {}).items():
        if not lever.get("at_default"):
            yield LEVER.found(str(name), f"{name} is {lever.get('now')}")


def _told(warning: object) -> str:
    if isinstance(warning, Mapping):
        return ", ".join(f"{name}: {value}" for name, value in warning.items())[:300]
    return str(warning)[:300]


def check_requests(facts: Facts) -> Iterator[Finding]:
    """What became of requests since the processor's start, where there were enough of them."""
    answer = server(facts).metrics
    if answer is None:
        raise NotLooked("--server was not given")
    if answer.failure or answer.status != 200:
        raise NotLooked(f"/metrics: {error_text(answer)}")
    counted = Counted(answer.body.decode("utf-8", "replace"))
    decided = counted.total("aibrix_extproc_requests_total", outcome="picked")
    passed = sum(counted.total("aibrix_extproc_passed_total", reason=r) for r in _NOT_MEANT)
    if decided + passed < _ENOUGH:
        raise NotLooked(f"only {decided + passed:.0f} requests so far")
    if passed > _SHARE * (decided + passed):
        reasons = counted.by("aibrix_extproc_passed_total", "reason")
        yield UNPICKED.found("requests", f"{passed:.0f} of {decided + passed:.0f}: {reasons}")
    fallback = counted.total("aibrix_extproc_fallback_total")
    if fallback > _SHARE * decided:
        reasons = counted.by("aibrix_extproc_fallback_total", "reason")
        yield UNTOKENIZED.found("requests", f"{fallback:.0f} of {decided:.0f}: {reasons}")
    picks = counted.total("aibrix_extproc_picks_total")
    other = counted.total("aibrix_extproc_picks_total", result="other")
    if other > _SHARE * picks:
        yield SERVED_ELSEWHERE.found("requests", f"{other:.0f} of {picks:.0f}")


class Counted:
    """Counters out of a page of metrics."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, label: str) -> str:
        """`value: count` of each value of a label, the most frequent first."""
        values = {s.labels.get(label, "") for s in self._samples if s.name == name}
        counts = {value: self.total(name, **{label: value}) for value in values}
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{value} {count:.0f}" for value, count in ordered if count)


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
