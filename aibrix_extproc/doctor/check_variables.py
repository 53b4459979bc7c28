"""The variables: values, names, and what does not go together. Pure.

Owns these codes. What a variable means is for `settings`.
"""

import difflib
from collections.abc import Iterator
from typing import Final

from aibrix_extproc.doctor.facts import Facts
from aibrix_extproc.doctor.findings import Area, Code, Finding, Severity
from aibrix_extproc.routing.strategies import STRATEGIES
from aibrix_extproc.routing.strategies.inputs import lacking
from aibrix_extproc.settings import IGNORED, Settings, is_of_a_service, variables

_SYNC: Final = "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"
_TOKENIZER: Final = "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"
_ENDPOINT: Final = "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT"

BAD_VALUE: Final = Code(
    "variable-bad-value",
    Area.VARIABLES,
    Severity.RED,
    "a variable has a value that cannot be used, so `serve` does not start",
    "Write a value of the kind that the README's table shows.",
)
MISSPELT: Final = Code(
    "variable-misspelt",
    Area.VARIABLES,
    Severity.RED,
    "a variable is set whose name is nearly one of ours: it has no effect",
    "Rename it.",
)
UNKNOWN: Final = Code(
    "variable-unknown",
    Area.VARIABLES,
    Severity.YELLOW,
    "an `AIBRIX_…` variable is set that nothing here reads",
    "Remove it, or look its name up in the README's table.",
)
IGNORED_HERE: Final = Code(
    "variable-ignored",
    Area.VARIABLES,
    Severity.YELLOW,
    "a variable of AIBrix's own plugin is set that has no effect here",
    "Remove it; nothing is lost.",
)
CONTRADICTION: Final = Code(
    "variables-contradict",
    Area.VARIABLES,
    Severity.RED,
    "variables that do not go together, so `serve` does not start",
    "Set or unset the variable that is named.",
)
SYNC_WITHOUT_TOKENIZER: Final = Code(
    "sync-without-tokenizer",
    Area.VARIABLES,
    Severity.RED,
    "event sync is on and the remote tokenizer is not: `serve` does not start",
    f"Set `{_TOKENIZER}` to true: events name tokens, so prompts must be tokenized.",
)
ENDPOINT_UNUSED: Final = Code(
    "tokenizer-endpoint-unused",
    Area.VARIABLES,
    Severity.YELLOW,
    "a tokenizer endpoint is set, and tokenizing is switched off",
    f"Set `{_TOKENIZER}` to true, or remove the endpoint.",
)
ROUTING_IGNORES_EVENTS: Final = Code(
    "routing-ignores-events",
    Area.VARIABLES,
    Severity.YELLOW,
    "events are followed, and the usual strategy does not look at them",
    "Set `ROUTING_ALGORITHM` to prefix-cache, or switch event sync off.",
)
PORTS_EQUAL: Final = Code(
    "default-ports-equal",
    Area.VARIABLES,
    Severity.RED,
    "`AIBRIX_KV_EVENT_PORT` and `AIBRIX_KV_REPLAY_PORT` are one port",
    "Set both as in the engines' --kv-events-config: `endpoint` and `replay_endpoint`.",
)
ADDRESSES_EQUAL: Final = Code(
    "addresses-collide",
    Area.VARIABLES,
    Severity.RED,
    "two of this server's ports are the same",
    "Give each address a port of its own.",
)
BODY_ABOVE_INFLIGHT: Final = Code(
    "limits-body-inflight",
    Area.VARIABLES,
    Severity.RED,
    "one body of the largest size is above the limit of all bodies: it is never decided",
    "Raise `AIBRIX_EXTPROC_MAX_INFLIGHT_BYTES` to many bodies, or lower "
    "`AIBRIX_EXTPROC_MAX_BODY_BYTES`.",
)
QUEUE_BELOW_MESSAGE: Final = Code(
    "limits-queue-message",
    Area.VARIABLES,
    Severity.YELLOW,
    "one batch of events may be larger than the queue of a source: waiting for a replay loses it",
    "Keep `AIBRIX_KV_QUEUE_BYTES` at or above `AIBRIX_KV_MAX_MESSAGE_BYTES`.",
)
TIMEOUTS: Final = Code(
    "timeouts-do-not-fit",
    Area.VARIABLES,
    Severity.YELLOW,
    "two of this server's time-outs do not fit one another",
    "Change one of the two as the finding says.",
)
STRATEGY_LACKS: Final = Code(
    "strategy-lacks-input",
    Area.VARIABLES,
    Severity.YELLOW,
    "the strategy of `ROUTING_ALGORITHM` never gets what it goes by: load decides",
    "Change the variable that the finding names, or choose another strategy.",
)
NAMESPACE_UNUSED: Final = Code(
    "namespace-unused",
    Area.VARIABLES,
    Severity.YELLOW,
    "a namespace is set, and pods come from a file",
    "Remove `AIBRIX_EXTPROC_NAMESPACE`, or `AIBRIX_EXTPROC_ENDPOINTS_FILE`.",
)

_OF_AIBRIX: Final = {
    "AIBRIX_PREFIX_CACHE_LOAD_IMBALANCE_FACTOR": "the load is part of every decision's cost",
    "AIBRIX_PREFIX_CACHE_LOAD_IMBALANCE_MIN_GAP": "the load is part of every decision's cost",
    "AIBRIX_PREFIX_CACHE_BLOCK_NUMBER": "the index is bounded by AIBRIX_KV_INDEX_MAX_BYTES",
    "AIBRIX_PREFIX_CACHE_EVICTION_INTERVAL_SECONDS": "engines' events say what is evicted",
    "AIBRIX_PREFIX_CACHE_EVICTION_DURATION_MINS": "engines' events say what is evicted",
    "AIBRIX_PREFIX_CACHE_METRICS_ENABLED": "see AIBRIX_PREFIX_CACHE_LOCAL_ROUTER_METRICS_ENABLED",
    "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENGINE": "engines and tokenizers speak vLLM's API",
    "AIBRIX_REMOTE_TOKENIZER_ENGINE": "engines and tokenizers speak vLLM's API",
    "AIBRIX_GPU_OPTIMIZER_TRACING_FLAG": "there is no optimizer here",
    "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": "the load is this server's own ledger",
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": "prefill and decode pods are not told apart here",
    "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES": "it follows AIBRIX_EXTPROC_MAX_BODY_BYTES",
}
"""Of AIBrix's gateway plugin, beside `settings.IGNORED`: names that are near to ours."""

_NEAR: Final = 0.8
_NEAR_WITHOUT_PREFIX: Final = 0.88
_LOOKS_AT_EVENTS: Final = ("prefix-cache", "prefix-cache-classic")


def check_names(facts: Facts) -> Iterator[Finding]:
    """Names that are set and mean nothing."""
    known = list(variables())
    for name, value in sorted(facts.environment.variables.items()):
        if name in known or not value.strip():
            continue
        if why := IGNORED.get(name) or _OF_AIBRIX.get(name):
            yield IGNORED_HERE.found(name, f"{name} is set: {why}")
            continue
        own = name.upper().startswith("AIBRIX_")
        if is_of_a_service(name, value):
            continue
        cutoff = _NEAR if own else _NEAR_WITHOUT_PREFIX
        close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=cutoff)
        if close:
            yield MISSPELT.found(name, f"{name} is set; the variable is {close[0]}")
        elif own:
            yield UNKNOWN.found(name, f"{name} is set, and nothing here reads it")


def check_values(facts: Facts) -> Iterator[Finding]:
    """Values that `serve` refuses."""
    for name, why in facts.environment.unusable.items():
        yield BAD_VALUE.found(name, why)
    algorithm = facts.settings.routing_algorithm
    if algorithm not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        yield BAD_VALUE.found(
            "ROUTING_ALGORITHM", f"{algorithm!r} is no strategy here; there are {known}"
        )
    for why in facts.environment.contradictions:
        yield CONTRADICTION.found(why.split(":", 1)[0], why)


def check_together(facts: Facts) -> Iterator[Finding]:
    """What each may be, and not both."""
    s = facts.settings
    if s.kv_event_sync and not s.use_remote_tokenizer:
        yield SYNC_WITHOUT_TOKENIZER.found(_SYNC, f"{_SYNC} is true and {_TOKENIZER} is not")
    if s.tokenizer_endpoint and not s.use_remote_tokenizer:
        yield ENDPOINT_UNUSED.found(_ENDPOINT, f"{_ENDPOINT} is set and {_TOKENIZER} is not true")
    if s.kv_event_sync and s.routing_algorithm in set(STRATEGIES) - set(_LOOKS_AT_EVENTS):
        seen = f"{_SYNC} is true and ROUTING_ALGORITHM is {s.routing_algorithm}"
        yield ROUTING_IGNORES_EVENTS.found("ROUTING_ALGORITHM", seen)
    for name, why in lacking(s):
        yield STRATEGY_LACKS.found(name, why)
    if s.kv_event_port == s.kv_replay_port:
        yield PORTS_EQUAL.found("AIBRIX_KV_REPLAY_PORT", f"both are {s.kv_event_port}")
    if s.endpoints_file and s.namespace:
        yield NAMESPACE_UNUSED.found("AIBRIX_EXTPROC_NAMESPACE", "both are set")
    yield from _addresses(s)


def _addresses(s: Settings) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, address in (
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", s.grpc_address),
        ("AIBRIX_EXTPROC_ADMIN_ADDRESS", s.admin_address),
        ("AIBRIX_EXTPROC_DEBUG_ADDRESS", s.debug_address),
        ("AIBRIX_EXTPROC_PEER_ADDRESS", s.peer_address),
    ):
        port = address.rpartition(":")[2]
        if port not in {"", "0"} and port in seen:
            yield ADDRESSES_EQUAL.found(name, f"{name} and {seen[port]} are both port {port}")
        seen.setdefault(port, name)


def check_limits(facts: Facts) -> Iterator[Finding]:
    """Sizes and time-outs that do not fit one another."""
    s = facts.settings
    if s.max_body_bytes > s.max_inflight_bytes:
        yield BODY_ABOVE_INFLIGHT.found(
            "AIBRIX_EXTPROC_MAX_BODY_BYTES",
            f"a body may have {s.max_body_bytes} bytes, all bodies together {s.max_inflight_bytes}",
        )
    if s.kv_max_message_bytes > s.kv_queue_bytes:
        yield QUEUE_BELOW_MESSAGE.found(
            "AIBRIX_KV_QUEUE_BYTES",
            f"a message may have {s.kv_max_message_bytes} bytes, the queue {s.kv_queue_bytes}",
        )
    yield from _timeouts(s)


def _timeouts(s: Settings) -> Iterator[Finding]:
    if s.tokenizer_timeout_s < s.decision_timeout_s:
        yield TIMEOUTS.found(
            "AIBRIX_EXTPROC_TOKENIZER_TIMEOUT",
            f"a call of the tokenizer ends after {s.tokenizer_timeout_s:g} s, though a decision "
            f"would wait for {s.decision_timeout_s:g} s: raise it to that at least",
        )
    if s.kv_stale_after_s <= s.kv_idle_probe_s:
        yield TIMEOUTS.found(
            "AIBRIX_KV_STALE_AFTER",
            f"a source is given up after {s.kv_stale_after_s:g} s of silence and asked for a sign "
            f"of life after {s.kv_idle_probe_s:g} s: an idle engine is never believed. Keep "
            "AIBRIX_KV_STALE_AFTER some times AIBRIX_KV_IDLE_PROBE",
        )
    if s.kv_lost_after_s <= 3 * s.kv_heartbeat_s:
        yield TIMEOUTS.found(
            "AIBRIX_KV_LOST_AFTER",
            f"a source is emptied after {s.kv_lost_after_s:g} s, and a dead connection is noticed "
            f"after {3 * s.kv_heartbeat_s:g} s: raise AIBRIX_KV_LOST_AFTER",
        )
    if 0 < s.watchdog_timeout_s <= s.decision_timeout_s:
        yield TIMEOUTS.found(
            "AIBRIX_EXTPROC_WATCHDOG_TIMEOUT",
            f"the process ends after a stall of {s.watchdog_timeout_s:g} s, and a decision may "
            f"take {s.decision_timeout_s:g} s: raise AIBRIX_EXTPROC_WATCHDOG_TIMEOUT",
        )


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
