"""The ext_proc filter of an Envoy: whether it is there, and what it sends and takes. Pure.

Owns these codes. Limits are for `check_envoy_limits`, the processor's cluster for
`check_envoy_cluster`, the way of a pick for `check_envoy_pick`.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from aibrix_extproc.doctor.envoy_dump import Config, Dump, Manager, seconds, typed
from aibrix_extproc.doctor.envoy_uses import (
    DESTINATION,
    RANK,
    TARGET_POD,
    Use,
    distinct,
    our_filters,
    uses,
)
from aibrix_extproc.doctor.facts import EnvoyFacts, Facts, Missing
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

UNREADABLE: Final = Code(
    "envoy-unreadable",
    Area.ENVOY,
    Severity.RED,
    "Envoy's configuration could not be had",
    "Give --envoy-admin the admin page (a port-forward of it), or --envoy-config-dump what its "
    "/config_dump?include_eds answers.",
)
NO_FILTER: Final = Code(
    "envoy-no-filter",
    Area.ENVOY,
    Severity.RED,
    "no listener has an ext_proc filter",
    "Add it as in envoy/override-host.yaml; with Envoy Gateway look at the status of the "
    "EnvoyExtensionPolicy.",
)
NO_ROUTE: Final = Code(
    "envoy-no-route",
    Area.ENVOY,
    Severity.RED,
    "no route takes `/v1/chat/completions` or `/v1/completions`",
    "Add a route for the prefix /v1/.",
)
ORDER: Final = Code(
    "envoy-filter-order",
    Area.ENVOY,
    Severity.RED,
    "the ext_proc filter does not stand before the router",
    "Put it before envoy.filters.http.router.",
)
ROUTE_DISABLED: Final = Code(
    "envoy-route-disabled",
    Area.ENVOY,
    Severity.RED,
    "the route on which a request starts has the processor switched off",
    "Remove the `typed_per_filter_config` of that route; with Envoy Gateway attach the "
    "EnvoyExtensionPolicy to its HTTPRoute or to the Gateway.",
)
REQUEST_HEADERS: Final = Code(
    "envoy-request-headers",
    Area.ENVOY,
    Severity.RED,
    "the processor does not get the request's headers: Envoy chooses a host before the body",
    "Set `request_header_mode: SEND`.",
)
BODY_MODE: Final = Code(
    "envoy-body-mode",
    Area.ENVOY,
    Severity.RED,
    "the processor does not get whole bodies",
    "Set `request_body_mode: BUFFERED` (Envoy Gateway: `request: {body: Buffered}`); "
    "FULL_DUPLEX_STREAMED does as well.",
)
RESPONSE_HEADERS: Final = Code(
    "envoy-response-headers",
    Area.ENVOY,
    Severity.YELLOW,
    "the processor does not see answers begin: a prompt counts as load until its answer is over",
    "Set `response_header_mode: SEND` (Envoy Gateway: `response: {}`).",
)
DUPLEX_REQUEST_TRAILERS: Final = Code(
    "envoy-duplex-request-trailers",
    Area.ENVOY,
    Severity.RED,
    "FULL_DUPLEX_STREAMED without request trailers: the end of a body may be missed",
    "Set `request_trailer_mode: SEND`.",
)
DUPLEX_RESPONSE_TRAILERS: Final = Code(
    "envoy-duplex-response-trailers",
    Area.ENVOY,
    Severity.YELLOW,
    "FULL_DUPLEX_STREAMED without response trailers: the end of an answer cannot be seen",
    "Set `response_trailer_mode: SEND`.",
)
DUPLEX_FAIL_OPEN: Final = Code(
    "envoy-duplex-fail-open",
    Area.ENVOY,
    Severity.RED,
    "FULL_DUPLEX_STREAMED with `failure_mode_allow`: a body that is half sent cannot go on alone",
    "Set `failure_mode_allow: false`, or use BUFFERED.",
)
FAIL_CLOSED: Final = Code(
    "envoy-fail-closed",
    Area.ENVOY,
    Severity.YELLOW,
    "without the processor every request is an error",
    "Set `failure_mode_allow: true` (Envoy Gateway: `failOpen: true`), with the stripping of "
    "destination headers.",
)
MESSAGE_TIMEOUT: Final = Code(
    "envoy-message-timeout",
    Area.ENVOY,
    Severity.RED,
    "Envoy gives up before the processor has decided (YELLOW: hardly after)",
    "Set `message_timeout: 2s` (its default is 200 ms; Envoy Gateway: `messageTimeout`), above "
    "`AIBRIX_EXTPROC_DECISION_TIMEOUT`.",
    milder=True,
)
NOT_STRIPPED: Final = Code(
    "envoy-headers-not-stripped",
    Area.ENVOY,
    Severity.RED,
    "a client's own destination header reaches the router whenever the processor is away",
    "Remove target-pod, x-gateway-destination-endpoint and x-data-parallel-rank by "
    "`early_header_mutation_extensions` (Envoy Gateway: ClientTrafficPolicy, "
    "`headers.earlyRequestHeaders.remove`).",
)
OBSERVES: Final = Code(
    "envoy-observability-mode",
    Area.ENVOY,
    Severity.RED,
    "the filter only watches: what the processor answers is ignored",
    "Remove `observability_mode`.",
)
MUTATION_RULES: Final = Code(
    "envoy-mutation-rules",
    Area.ENVOY,
    Severity.RED,
    "the filter's `mutation_rules` forbid the headers of a pick",
    "Remove the rule, or let target-pod and x-gateway-destination-endpoint through.",
)
IMMEDIATE: Final = Code(
    "envoy-immediate-response",
    Area.ENVOY,
    Severity.YELLOW,
    "the processor's own answers (404 for a model, 503, 413) are not given to clients",
    "Remove `disable_immediate_response`.",
)
SECRETS: Final = Code(
    "envoy-secrets-forwarded",
    Area.ENVOY,
    Severity.YELLOW,
    "clients' credentials are sent to the processor, which does not need them",
    "List authorization, cookie and x-api-key in `forward_rules.disallowed_headers`, where the "
    "gateway lets you.",
)
MODE_OVERRIDE: Final = Code(
    "envoy-mode-override",
    Area.ENVOY,
    Severity.YELLOW,
    "answers are to be sampled (`AIBRIX_EXTPROC_USAGE_SAMPLE`), and Envoy does not allow it",
    "Set `allow_mode_override: true` (Envoy Gateway: `processingMode.allowModeOverride`), or the "
    "share to 0.",
)
UPSTREAM_ADDRESS: Final = Code(
    "envoy-upstream-address",
    Area.ENVOY,
    Severity.YELLOW,
    "the processor is not told which host served: picks cannot be compared with what was done",
    "Set `response_attributes: [upstream.address]` (Envoy Gateway: "
    "`processingMode.response.attributes`).",
)

_MARGIN_S: Final = 0.25
_DEFAULT_MESSAGE_TIMEOUT_S: Final = 0.2
_BUFFERED: Final = "BUFFERED"
_DUPLEX: Final = "FULL_DUPLEX_STREAMED"
_BY_NUMBER: Final = {0: "NONE", 1: "STREAMED", 2: _BUFFERED, 3: "BUFFERED_PARTIAL", 4: _DUPLEX}
_STRIPPED: Final = (TARGET_POD, DESTINATION, RANK)
_CREDENTIALS: Final = ("authorization", "cookie", "x-api-key")


def envoy(facts: Facts) -> EnvoyFacts:
    """What Envoy said. Raises NotLooked."""
    if isinstance(facts.envoy, Missing):
        raise NotLooked(facts.envoy.why)
    return facts.envoy


def all_uses(facts: Facts) -> list[Use]:
    """Every use of our filters. Raises NotLooked where there is no filter."""
    dump, port = envoy(facts).dump, grpc_port(facts)
    found = [use for manager, one in our_filters(dump, port) for use in uses(manager, one)]
    if not found:
        raise NotLooked("no ext_proc filter, or no route")
    return found


def grpc_port(facts: Facts) -> int:
    """Where this processor listens."""
    return int(facts.settings.grpc_address.rpartition(":")[2])


def mode(config: Config, name: str, default: str) -> str:
    """A field of `processing_mode`; the default where it is not set or says DEFAULT."""
    value: Any = config.get("processing_mode", {}).get(name, default)
    if isinstance(value, int):
        value = _BY_NUMBER.get(value, str(value)) if "body" in name else ("", "SEND", "SKIP")[value]
    return default if value in {"DEFAULT", ""} else str(value)


def body_mode(config: Config) -> str:
    """NONE where it is not set."""
    return mode(config, "request_body_mode", "NONE")


def check_filter(facts: Facts) -> Iterator[Finding]:
    """The filter is there, in its place, and on for the routes."""
    if isinstance(facts.envoy, Missing):
        if not facts.envoy.failed:
            raise NotLooked(facts.envoy.why)
        yield UNREADABLE.found("envoy", facts.envoy.why)
        return
    dump = facts.envoy.dump
    filters = our_filters(dump, grpc_port(facts))
    if not filters:
        names = ", ".join(f.name for m in dump.managers for f in m.filters) or "none"
        yield NO_FILTER.found("envoy", f"the HTTP filters are: {names}")
        return
    for manager, one in filters:
        kinds = [f.kind for f in manager.filters]
        if "Router" not in kinds[manager.filters.index(one) :]:
            yield ORDER.found(one.name, f"in the listener {manager.listener}: {', '.join(kinds)}")
    found = [use for manager, one in filters for use in uses(manager, one)]
    if not found:
        yield NO_ROUTE.found("envoy", "no virtual host has such a route")
        return
    yield from _disabled(found)


def _disabled(found: list[Use]) -> Iterator[Finding]:
    """A virtual host that never uses the processor is somebody else's, unless all are so."""
    using = {use.host.name for use in found if use.config is not None}
    for use in found:
        if use.config is None and (not using or use.host.name in using):
            yield ROUTE_DISABLED.found(use.where, f"on {use.where} the filter is off")


def check_modes(facts: Facts) -> Iterator[Finding]:
    """What the filter sends."""
    for use in distinct(all_uses(facts)):
        config: Config = use.config or {}
        if mode(config, "request_header_mode", "SEND") != "SEND":
            yield REQUEST_HEADERS.found(use.where, "request_header_mode is SKIP")
        body = body_mode(config)
        if body not in {_BUFFERED, _DUPLEX}:
            yield BODY_MODE.found(use.where, f"request_body_mode is {body}")
        if mode(config, "response_header_mode", "SEND") != "SEND":
            yield RESPONSE_HEADERS.found(use.where, "response_header_mode is SKIP")
        if body == _DUPLEX:
            yield from _duplex(use.where, config)
        elif not config.get("failure_mode_allow"):
            yield FAIL_CLOSED.found(use.where, "failure_mode_allow is false")
        if config.get("observability_mode"):
            yield OBSERVES.found(use.where, "observability_mode is true")


def _duplex(where: str, config: Config) -> Iterator[Finding]:
    if mode(config, "request_trailer_mode", "SKIP") != "SEND":
        yield DUPLEX_REQUEST_TRAILERS.found(where, "request_trailer_mode is SKIP")
    if mode(config, "response_trailer_mode", "SKIP") != "SEND":
        yield DUPLEX_RESPONSE_TRAILERS.found(where, "response_trailer_mode is SKIP")
    if config.get("failure_mode_allow"):
        yield DUPLEX_FAIL_OPEN.found(where, "failure_mode_allow is true")


def check_message_timeout(facts: Facts) -> Iterator[Finding]:
    """Envoy waits longer than a decision may take. In duplex it has no such time-out."""
    limit_s = facts.settings.decision_timeout_s
    for use in distinct(all_uses(facts)):
        config: Config = use.config or {}
        if body_mode(config) == _DUPLEX:
            continue
        waits_s = seconds(config.get("message_timeout"), _DEFAULT_MESSAGE_TIMEOUT_S)
        if waits_s < limit_s + _MARGIN_S:
            mild = Severity.YELLOW if waits_s > limit_s else None
            said = "" if "message_timeout" in config else " (its default)"
            seen = f"Envoy waits {waits_s:g} s{said}, a decision may take {limit_s:g} s"
            yield MESSAGE_TIMEOUT.found(use.where, seen, mild)


def check_stripping(facts: Facts) -> Iterator[Finding]:
    """No destination of a client's own reaches the router."""
    managers = {id(use.manager): use for use in all_uses(facts)}
    for use in managers.values():
        gone = _early(use.manager) | _before(use)
        left = [name for name in _STRIPPED if name not in gone]
        if left:
            yield NOT_STRIPPED.found(
                f"listener {use.manager.listener}", f"not removed: {', '.join(left)}"
            )


def _early(manager: Manager) -> set[str]:
    found: set[str] = set()
    for extension in manager.config.get("early_header_mutation_extensions", ()):
        found |= _removes(typed(extension).get("mutations", ()))
    return found


def _before(use: Use) -> set[str]:
    """What a header mutation filter before ours removes."""
    found: set[str] = set()
    for one in use.manager.filters[: use.manager.filters.index(use.filter)]:
        if one.kind == "HeaderMutation" and not one.disabled:
            found |= _removes(one.config.get("mutations", {}).get("request_mutations", ()))
    return found


def _removes(mutations: Any) -> set[str]:
    found = {str(one["remove"]).lower() for one in mutations if "remove" in one}
    for one in mutations:
        matcher = one.get("remove_on_match", {}).get("key_matcher", {})
        if "exact" in matcher:
            found.add(str(matcher["exact"]).lower())
        prefix = matcher.get("prefix")
        found |= {name for name in _STRIPPED if prefix and name.startswith(str(prefix).lower())}
    return found


def check_rights(facts: Facts) -> Iterator[Finding]:
    """What the processor may do, and what it is told."""
    for use in distinct(all_uses(facts)):
        config: Config = use.config or {}
        rules = config.get("mutation_rules", {})
        if rules.get("disallow_all") or _forbids(rules):
            yield MUTATION_RULES.found(use.where, "they do not let a pick's headers through")
        if config.get("disable_immediate_response"):
            yield IMMEDIATE.found(use.where, "disable_immediate_response is true")
        told = [name for name in _CREDENTIALS if is_forwarded(config, name)]
        if told:
            yield SECRETS.found(use.where, f"sent to the processor: {', '.join(told)}")
        duplex = body_mode(config) == _DUPLEX
        if facts.settings.usage_sample and not duplex and not config.get("allow_mode_override"):
            yield MODE_OVERRIDE.found(use.where, "allow_mode_override is false")
        if "upstream.address" not in config.get("response_attributes", ()):
            yield UPSTREAM_ADDRESS.found(use.where, "response_attributes has no upstream.address")


def _forbids(rules: Config) -> bool:

    forbidden, allowed = rules.get("disallow_expression"), rules.get("allow_expression")
    try:
        if allowed and all(re.fullmatch(allowed["regex"], n) for n in (TARGET_POD, DESTINATION)):
            return False
        return bool(
            forbidden
            and any(re.fullmatch(forbidden["regex"], n) for n in (TARGET_POD, DESTINATION))
        )
    except (re.error, KeyError, TypeError):
        return False


def is_forwarded(config: Config, name: str) -> bool:
    """Whether the filter sends this header of a request to the processor."""
    rules = config.get("forward_rules", {})
    if any(_matches(one, name) for one in rules.get("disallowed_headers", {}).get("patterns", ())):
        return False
    allowed = rules.get("allowed_headers")
    return allowed is None or any(_matches(one, name) for one in allowed.get("patterns", ()))


def _matches(pattern: Config, name: str) -> bool:
    fold = str.lower if pattern.get("ignore_case") else str
    if "exact" in pattern:
        return fold(str(pattern["exact"])) == name
    if "prefix" in pattern:
        return name.startswith(fold(str(pattern["prefix"])))
    return "contains" in pattern and fold(str(pattern["contains"])) in name


def dump_of(facts: Facts) -> Dump:
    """The configuration. Raises NotLooked."""
    return envoy(facts).dump


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
