"""All checks in their order, and all codes: what doctor can say. Pure.

Owns the list, and what becomes of a check that cannot look. docs/doctor.md is compared with it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.doctor import (
    check_engines,
    check_envoy_cluster,
    check_envoy_filter,
    check_envoy_headers,
    check_envoy_limits,
    check_envoy_pick,
    check_events,
    check_manifests,
    check_pods,
    check_server,
    check_tokenizer,
    check_variables,
)
from aibrix_extproc.doctor.facts import Facts
from aibrix_extproc.doctor.findings import (
    SKIPPED,
    Area,
    Code,
    Finding,
    NotLooked,
    Severity,
    in_order,
    ok,
    skipped,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One question about a set-up."""

    area: Area
    title: str
    run: Callable[[Facts], Iterable[Finding]]
    right: str
    """What is told where it finds nothing."""


CHECK_FAILED: Final = Code(
    "check-failed",
    Area.SERVER,
    Severity.YELLOW,
    "a check of doctor's own failed",
    "Report it.",
)

CODES: Final = (
    *check_variables.CODES,
    *check_pods.CODES,
    *check_manifests.CODES,
    *check_engines.CODES,
    *check_events.CODES,
    *check_tokenizer.CODES,
    *check_envoy_filter.CODES,
    *check_envoy_headers.CODES,
    *check_envoy_cluster.CODES,
    *check_envoy_limits.CODES,
    *check_envoy_pick.CODES,
    *check_server.CODES,
    CHECK_FAILED,
)

_V, _P, _N, _S = Area.VARIABLES, Area.PODS, Area.ENGINES, Area.EVENTS
_T, _E, _R = Area.TOKENIZER, Area.ENVOY, Area.SERVER

CHECKS: Final = (
    Check(_V, "names", check_variables.check_names, "every variable that is set is one of ours"),
    Check(_V, "values", check_variables.check_values, "every value can be used"),
    Check(_V, "together", check_variables.check_together, "nothing contradicts"),
    Check(_V, "limits", check_variables.check_limits, "limits and time-outs fit one another"),
    Check(_P, "listing", check_pods.check_listing, "there are pods, and all are ready"),
    Check(_P, "addresses", check_pods.check_addresses, "each pod has an address of its own"),
    Check(_P, "events", check_pods.check_events_marked, "pods and settings agree on events"),
    Check(_P, "labels", check_pods.check_labels, "labels, annotations and ports are right"),
    Check(_P, "workloads", check_manifests.check_workloads, "labels are in the pod templates"),
    Check(_P, "commands", check_manifests.check_commands, "engines are started as they should be"),
    Check(_N, "http", check_engines.check_http, "engines answer, by the names of their pods"),
    Check(_N, "event sources", check_engines.check_sources, "engines have the ranks known here"),
    Check(_N, "cache", check_engines.check_cache, "prefix caches are on, with one block size"),
    Check(_S, "event ports", check_events.check_event_ports, "subscriptions come about"),
    Check(_S, "batches", check_events.check_batches, "all that came can be read"),
    Check(_S, "replays", check_events.check_replays, "replays answer, from 0 to their end"),
    Check(_S, "blocks", check_events.check_blocks, "events fit what engines say"),
    Check(_T, "answers", check_tokenizer.check_answers, "tokenizers answer in time"),
    Check(_T, "alike", check_tokenizer.check_alike, "tokenizers give the same tokens"),
    Check(_T, "probes", check_tokenizer.check_probes, "events hold the tokenizer's tokens"),
    Check(_E, "filter", check_envoy_filter.check_filter, "the processor is on the way of requests"),
    Check(_E, "modes", check_envoy_filter.check_modes, "headers and whole bodies are sent to it"),
    Check(_E, "message time-out", check_envoy_filter.check_message_timeout, "a decision fits in"),
    Check(_E, "stripping", check_envoy_filter.check_stripping, "clients name no destination"),
    Check(_E, "rights", check_envoy_filter.check_rights, "it may answer, and gets no secrets"),
    Check(_E, "headers", check_envoy_headers.check_forwarded, "it gets the headers it reads"),
    Check(_E, "cluster", check_envoy_cluster.check_cluster, "the processor can be reached"),
    Check(_E, "breakers", check_envoy_cluster.check_breakers, "its breakers let all through"),
    Check(_E, "retries", check_envoy_cluster.check_retries, "a lost replica costs no decision"),
    Check(_E, "health", check_envoy_cluster.check_health_checks, "its readiness is asked for"),
    Check(_E, "buffers", check_envoy_limits.check_buffers, "the largest body fits"),
    Check(_E, "time-outs", check_envoy_limits.check_timeouts, "answers are not cut off"),
    Check(_E, "admin page", check_envoy_limits.check_admin, "not everybody's"),
    Check(_E, "pick", check_envoy_pick.check_pick_used, "the engines' cluster looks at the pick"),
    Check(_E, "pick's source", check_envoy_pick.check_sources, "it is read where it is written"),
    Check(_E, "route cache", check_envoy_pick.check_route_cache, "a pick chooses its route"),
    Check(_E, "hosts", check_envoy_pick.check_hosts, "Envoy's hosts are the pods"),
    Check(_E, "engine retries", check_envoy_pick.check_engine_retries, "alternatives are tried"),
    Check(_E, "engine breakers", check_envoy_pick.check_engine_breakers, "all are let through"),
    Check(_R, "readiness", check_server.check_readiness, "the processor answers, and is ready"),
    Check(_R, "sources", check_server.check_sources, "every source is EXACT"),
    Check(_R, "agreement", check_server.check_agreement, "no warning, and no lever moved"),
    Check(_R, "requests", check_server.check_requests, "requests are picked, by their tokens"),
)


def run_checks(facts: Facts) -> list[Finding]:
    """Every finding, by area and the worst first."""
    found = [finding for check in CHECKS for finding in _run(check, facts)]
    return in_order(_without_repeats(found))


def _run(check: Check, facts: Facts) -> Sequence[Finding]:
    try:
        found = list(dict.fromkeys(check.run(facts)))
    except NotLooked as why:
        return [skipped(check.area, check.title, str(why))]
    except Exception as error:  # noqa: BLE001 - one check's fault must not hide the others
        failed = CHECK_FAILED.found(check.title, f"{type(error).__name__}: {error}")
        return [failed]
    return found or [ok(check.area, check.title, check.right)]


def _without_repeats(found: Sequence[Finding]) -> list[Finding]:
    """An area of which nothing could be looked at, for one reason, is one line."""
    kept = []
    for area in Area:
        mine = [finding for finding in found if finding.area is area]
        if {finding.code for finding in mine} == {SKIPPED} and len({f.seen for f in mine}) == 1:
            mine = [skipped(area, str(area), mine[0].seen)]
        kept += mine
    return kept
