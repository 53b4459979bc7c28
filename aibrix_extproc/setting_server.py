"""The variables of the server itself: where it listens, what it logs, how it ends.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from aibrix_extproc.setting_types import (
    LOWER,
    UPPER,
    Address,
    AddressOrNone,
    DurationOrZero,
    Names,
    SettingsGroup,
    var,
)


class LogFormat(StrEnum):
    """The shape of log lines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class ServerSettings(SettingsGroup):
    """The server's own variables."""

    grpc_address: Address = var(
        "0.0.0.0:50052",
        "AIBRIX_EXTPROC_GRPC_ADDRESS",
        "Where Envoy reaches this server.",
    )
    admin_address: Address = var(
        "0.0.0.0:8080",
        "AIBRIX_EXTPROC_ADMIN_ADDRESS",
        "Health, metrics and models over HTTP, for probes and Prometheus.",
    )
    debug_address: Address = var(
        "127.0.0.1:8081",
        "AIBRIX_EXTPROC_DEBUG_ADDRESS",
        "Debug pages and levers over HTTP. Nobody is asked who he is there: keep it on the "
        "loopback, or behind a network policy.",
    )
    debug_hosts: Names = var(
        (),
        "AIBRIX_EXTPROC_DEBUG_HOSTS",
        "Names, separated by commas, by which the debug port and the peers' port may be asked "
        "beside IP addresses and `localhost`.",
    )
    peer_address: AddressOrNone = var(
        "",
        "AIBRIX_EXTPROC_PEER_ADDRESS",
        "Where other replicas fetch `/snapshot` (`serve --from-peer`), and nothing else is "
        "answered. Unset: only the debug port answers it.",
    )
    log_level: Annotated[LogLevel, UPPER] = var(
        LogLevel.INFO, "AIBRIX_EXTPROC_LOG_LEVEL", "Least severe log line."
    )
    log_format: Annotated[LogFormat, LOWER] = var(
        LogFormat.TEXT, "AIBRIX_EXTPROC_LOG_FORMAT", "`text` or `json`, one object a line."
    )
    decision_log_share: Annotated[float, Field(ge=0, le=1)] = var(
        0.0,
        "AIBRIX_EXTPROC_DECISION_LOG_SHARE",
        "Share of the decisions that are written to the log, each as one JSON object a line: "
        "0 for none, 1 for all.",
    )
    pre_stop_delay_s: DurationOrZero = var(
        5.0,
        "AIBRIX_EXTPROC_PRE_STOP_DELAY",
        "After SIGTERM: how long new requests are still taken while health says NOT_SERVING.",
    )
    watchdog_timeout_s: DurationOrZero = var(
        10.0,
        "AIBRIX_EXTPROC_WATCHDOG_TIMEOUT",
        "A stall of the event loop longer than this ends the process; 0 switches it off.",
    )
    ready_grace_s: DurationOrZero = var(
        30.0,
        "AIBRIX_EXTPROC_READY_GRACE",
        "Readiness waits for the first sync of all sources for at most this long.",
    )
