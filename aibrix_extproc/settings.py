"""The environment, read once into one frozen `Settings`.

Owns every variable: its name, default and one line of meaning (the README's table is compared
with it). Large groups stand in modules of their own (`setting_server`); `setting_types` owns how
values are written. Knows nothing of what they do. A value that cannot be used is a
`SettingsError` that names the variable; `cli` turns it into exit code 2.
"""

import difflib
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.setting_agreement import AgreementSettings
from aibrix_extproc.setting_bounds import BoundSettings
from aibrix_extproc.setting_events import EventSettings, IndexBackend
from aibrix_extproc.setting_overload import OverloadSettings
from aibrix_extproc.setting_server import LogFormat, LogLevel, ServerSettings
from aibrix_extproc.setting_snapshot import SnapshotSettings
from aibrix_extproc.setting_strategies import StrategySettings
from aibrix_extproc.setting_tls import TlsSettings
from aibrix_extproc.setting_types import (
    LOWER,
    BodyLimit,
    Duration,
    DurationOrZero,
    Endpoint,
    Flag,
    SettingsGroup,
    Size,
    var,
)

__all__ = [
    "IGNORED",
    "BodyMode",
    "IndexBackend",
    "LogFormat",
    "LogLevel",
    "Settings",
    "is_of_a_service",
    "variables",
    "warnings",
]

IGNORED: Final[Mapping[str, str]] = {
    "AIBRIX_PREFIX_CACHE_TOKENIZER_TYPE": "tokens always come from the remote tokenizer",
    "AIBRIX_PREFIX_CACHE_BLOCK_SIZE": "every event carries the engine's own block size",
    "REDIS_HOST": "nothing here needs Redis",
    "REDIS_PORT": "nothing here needs Redis",
    "REDIS_PASSWORD": "nothing here needs Redis",
}
"""Variables of AIBrix's manifests that mean nothing here, and why: accepted with a warning."""

_OWN_PREFIXES: Final = ("AIBRIX_EXTPROC_", "AIBRIX_KV_", "AIBRIX_PREFIX_CACHE_")
_OF_A_SERVICE: Final = re.compile(
    r"[A-Z0-9_]+_(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT=\w+://"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?=).*"
)
"""What Kubernetes sets in every pod for a Service named `aibrix-extproc…`: no misspelling."""


class BodyMode(StrEnum):
    """How Envoy sends bodies, where it does not say so itself (before Envoy 1.34)."""

    BUFFERED = "buffered"
    DUPLEX = "duplex"


class _AibrixSettings(SettingsGroup):
    """AIBrix's own variables."""

    kv_event_sync: Flag = var(
        False,
        "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED",
        "Feed the index from the engines' KV events. Needs the remote tokenizer.",
    )
    use_remote_tokenizer: Flag = var(
        False,
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER",
        "Tokenize prompts by the engines' own `/tokenize`.",
    )
    tokenizer_endpoint: Endpoint = var(
        "",
        "AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT",
        "URL of a tokenizer to ask first; where it is unset, or does not know the model, a ready "
        "pod of the model is asked.",
    )
    decision_metrics: Flag = var(
        True,
        "AIBRIX_PREFIX_CACHE_LOCAL_ROUTER_METRICS_ENABLED",
        "Export the metrics of each decision.",
    )
    routing_algorithm: str = var(
        "prefix-cache",
        "ROUTING_ALGORITHM",
        "Strategy of requests without the header `routing-strategy`: `prefix-cache`, "
        "`prefix-cache-classic`, `least-request`, `least-kv-cache`, `power-of-two`, "
        "`session-affinity` or `random`.",
    )
    imbalance_abs_count: Annotated[int, Field(ge=0)] = var(
        8,
        "AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT",
        "`prefix-cache-classic`: above this difference of running requests only the least loaded "
        "pods are candidates.",
    )
    standard_deviation_factor: Annotated[float, Field(ge=0)] = var(
        1.0,
        "AIBRIX_PREFIX_CACHE_STANDARD_DEVIATION_FACTOR",
        "`prefix-cache-classic`: a pod is chosen while its running requests stay within the mean "
        "plus this many standard deviations.",
    )


class Settings(
    SnapshotSettings,
    StrategySettings,
    BoundSettings,
    OverloadSettings,
    EventSettings,
    AgreementSettings,
    TlsSettings,
    ServerSettings,
    _AibrixSettings,
):
    """Everything that an operator can set. Names carry units; `from_environment` builds it.

    The groups stand in the order of their bases, the last one first.
    """

    # -- requests -----------------------------------------------------------------------------
    max_streams: Annotated[int, Field(ge=1)] = var(
        10_000, "AIBRIX_EXTPROC_MAX_STREAMS", "Requests open at once; above it 429."
    )
    max_body_bytes: BodyLimit = var(
        16 * 1024 * 1024, "AIBRIX_EXTPROC_MAX_BODY_BYTES", "Largest request body; above it 413."
    )
    max_inflight_bytes: Size = var(
        512 * 1024 * 1024,
        "AIBRIX_EXTPROC_MAX_INFLIGHT_BYTES",
        "Bytes of all bodies held at once; above it requests pass on without a pick.",
    )
    decision_timeout_s: Duration = var(
        1.0,
        "AIBRIX_EXTPROC_DECISION_TIMEOUT",
        "From the last byte of a body to its decision; over it the request is routed by load.",
    )
    default_body_mode: Annotated[BodyMode, LOWER] = var(
        BodyMode.BUFFERED,
        "AIBRIX_EXTPROC_DEFAULT_BODY_MODE",
        "Body mode of an Envoy that does not name its own (before 1.34): `buffered` or `duplex`.",
    )
    alternatives: Annotated[int, Field(ge=1, le=16)] = var(
        3,
        "AIBRIX_EXTPROC_ALTERNATIVES",
        "Pods named in `x-gateway-destination-endpoint`, best first. Set 1 where that header "
        "feeds an ORIGINAL_DST cluster.",
    )
    debug_headers: Flag = var(
        False,
        "AIBRIX_EXTPROC_DEBUG_HEADERS",
        "Tell clients strategy, pod and matched tokens. They show a tenant what others cached.",
    )
    trust_client_headers: Flag = var(
        True,
        "AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS",
        "Let clients choose by `routing-strategy`, `external-filter` and `x-session-id`.",
    )

    # -- routing ------------------------------------------------------------------------------
    decode_weight_tokens: Annotated[float, Field(ge=0)] = var(
        64.0,
        "AIBRIX_EXTPROC_DECODE_WEIGHT_TOKENS",
        "`prefix-cache`: what one decoding request costs a pod, in prompt tokens.",
    )
    crowding_from: Annotated[float, Field(ge=1)] = var(
        1.5,
        "AIBRIX_EXTPROC_CROWDING_FROM",
        "`prefix-cache`: a pod is crowded above this many times the candidates' mean of prompt "
        "tokens of open requests.",
    )
    crowding_weight: Annotated[float, Field(ge=0)] = var(
        0.3,
        "AIBRIX_EXTPROC_CROWDING_WEIGHT",
        "`prefix-cache`: what each of those tokens above that costs a pod, in prompt tokens.",
    )
    reservation_limit_s: Duration = var(
        600.0,
        "AIBRIX_EXTPROC_RESERVATION_LIMIT",
        "A request that is not seen to end leaves the ledger of load after this long.",
    )
    expected_output_tokens: Annotated[int, Field(ge=1)] = var(
        256,
        "AIBRIX_EXTPROC_EXPECTED_OUTPUT_TOKENS",
        "Length of an answer whose request sets no limit, where its end cannot be seen (duplex).",
    )
    expected_token_time_s: Duration = var(
        0.02,
        "AIBRIX_EXTPROC_EXPECTED_TIME_PER_TOKEN",
        "Time of one answer token, where the end of the answer cannot be seen (duplex).",
    )
    prediction_ttl_s: DurationOrZero = var(
        2.0,
        "AIBRIX_EXTPROC_PREDICTION_TTL",
        "How long what was just sent to a pod counts as held there, until its events say so.",
    )
    prediction_ttl_no_events_s: DurationOrZero = var(
        600.0,
        "AIBRIX_EXTPROC_PREDICTION_TTL_NO_EVENTS",
        "The same for a pod that sends no events.",
    )
    prediction_max_blocks: Annotated[int, Field(ge=0)] = var(
        500_000,
        "AIBRIX_EXTPROC_PREDICTION_MAX_BLOCKS",
        "Predicted blocks held at once; above it the oldest go.",
    )

    # -- tokenizer ----------------------------------------------------------------------------
    tokenizer_cache_bytes: Size = var(
        64 * 1024 * 1024,
        "AIBRIX_EXTPROC_TOKENIZER_CACHE_BYTES",
        "Cache of tokenized prompts; with conversations, half of it is theirs.",
    )
    conversation_cache: Flag = var(
        True,
        "AIBRIX_EXTPROC_CONVERSATION_CACHE",
        "Decide at once where enough of a prompt is known from earlier turns and other prompts, "
        "and tokenize it meanwhile.",
    )
    prefix_decide_share: Annotated[float, Field(gt=0, le=1)] = var(
        0.5,
        "AIBRIX_EXTPROC_PREFIX_DECIDE_SHARE",
        "How much of a prompt must be known for that. The answer to the known part does not count.",
    )
    tokenizer_timeout_s: Duration = var(
        5.0,
        "AIBRIX_EXTPROC_TOKENIZER_TIMEOUT",
        "Of one call; equal prompts share it, so it may outlive the decision that began it.",
    )
    tokenizer_breaker_failures: Annotated[int, Field(ge=1)] = var(
        5,
        "AIBRIX_EXTPROC_TOKENIZER_BREAKER_FAILURES",
        "Failures in a row after which a tokenizer endpoint is left alone.",
    )
    tokenizer_breaker_cooldown_s: Duration = var(
        5.0,
        "AIBRIX_EXTPROC_TOKENIZER_BREAKER_COOLDOWN",
        "How long it is left alone before one call tries it again.",
    )
    tokenizer_render: Flag = var(
        True,
        "AIBRIX_EXTPROC_TOKENIZER_RENDER",
        "Prefer `/render`, which returns the exact ids, where an engine answers it.",
    )
    exclude_tools_when_tool_choice_none: Flag = var(
        False,
        "AIBRIX_EXTPROC_EXCLUDE_TOOLS_WHEN_TOOL_CHOICE_NONE",
        "Set it where the engines run with `--exclude-tools-when-tool-choice-none`.",
    )

    # -- discovery ----------------------------------------------------------------------------
    endpoints_file: str = var(
        "",
        "AIBRIX_EXTPROC_ENDPOINTS_FILE",
        "YAML file that lists the pods; unset means Kubernetes.",
    )
    namespace: str = var(
        "", "AIBRIX_EXTPROC_NAMESPACE", "Namespace whose pods are watched; unset means all."
    )
    probe_interval_s: Duration = var(
        10.0,
        "AIBRIX_EXTPROC_PROBE_INTERVAL",
        "How often each pod is asked for its `/v1/models` and `/kv_event_sources`.",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read and check the variables (default: `os.environ`); an empty one counts as unset.

        Raises SettingsError that names every bad variable and says what to write.
        """
        source = os.environ if environment is None else environment
        names = variables()
        values = {name: source[name] for name in names if source.get(name, "").strip()}
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError("; ".join(_explain(e) for e in error.errors())) from None
        settings.check_together()
        return settings

    def check_together(self) -> None:
        """Rules that bind several variables. Raises SettingsError."""
        self.check_tls()
        if self.kv_event_sync and not self.use_remote_tokenizer:
            raise SettingsError(
                "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED is true, but "
                "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER is not: events name tokens, so prompts "
                "must be tokenized. Set the second to true, or the first to false"
            )


def variables() -> dict[str, FieldInfo]:
    """Every variable by its name, in the order of the table."""
    return {str(field.validation_alias): field for field in Settings.model_fields.values()}


def warnings(environment: Mapping[str, str] | None = None) -> list[str]:
    """One line for each variable that is set and has no effect here, with the reason."""
    source = os.environ if environment is None else environment
    known = list(variables())
    lines = [f"{name} is ignored: {why}" for name, why in IGNORED.items() if source.get(name)]
    for name in sorted(source):
        own = name.startswith(_OWN_PREFIXES) and not is_of_a_service(name, source[name])
        if own and name not in known and name not in IGNORED:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            lines.append(f"{name} is no variable of this server{hint}")
    return lines


def is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes sets this variable for a Service, whose name may begin like ours."""
    return _OF_A_SERVICE.fullmatch(f"{name}={value}") is not None


def _explain(error: Any) -> str:
    name = str(error["loc"][0])
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    return f"{name}: {message}" + (f" (it is {given!r})" if str(given) not in message else "")
