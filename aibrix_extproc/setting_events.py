"""The variables of event sync and of the index that it feeds.

Owns their names, defaults and meanings; a part of `settings`, which reads them.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from aibrix_extproc.setting_types import (
    Duration,
    Port,
    SettingsGroup,
    Size,
    var,
)


class IndexBackend(StrEnum):
    """Which implementation of the index serves."""

    AUTO = "auto"
    """The compiled core where it is built, else the reference."""
    CORE = "core"
    REFERENCE = "reference"


class EventSettings(SettingsGroup):
    """Event sync's own variables."""

    kv_event_port: Port = var(
        5557, "AIBRIX_KV_EVENT_PORT", "Event port of a pod that names none; rank r adds r."
    )
    kv_replay_port: Port = var(
        5558, "AIBRIX_KV_REPLAY_PORT", "Replay port of a pod that names none; rank r adds r."
    )
    kv_subscriber_threads: Annotated[int, Field(ge=1, le=16)] = var(
        1,
        "AIBRIX_KV_SUBSCRIBER_THREADS",
        "Threads that read all event streams. More take more cores from requests in a burst.",
    )
    kv_index_backend: IndexBackend = var(
        IndexBackend.AUTO,
        "AIBRIX_KV_INDEX_BACKEND",
        "`core` (compiled), `reference` (plain Python, far slower), or `auto`: the core where it "
        "is built.",
    )
    kv_index_max_bytes: Size = var(
        2 * 1024 * 1024 * 1024,
        "AIBRIX_KV_INDEX_MAX_BYTES",
        "Size of the index; above it a source takes no new block until it is cleared. 0: no limit.",
    )
    kv_max_orphans: Annotated[int, Field(ge=0)] = var(
        4096, "AIBRIX_KV_MAX_ORPHANS", "Parked blocks per source whose parent is unknown."
    )
    kv_replay_timeout_s: Duration = var(
        5.0, "AIBRIX_KV_REPLAY_TIMEOUT", "Longest silence within one replay."
    )
    kv_queue_bytes: Size = var(
        64 * 1024 * 1024,
        "AIBRIX_KV_QUEUE_BYTES",
        "Live batches that wait for a replay, per source; above it the source is LOST.",
    )
    kv_idle_probe_s: Duration = var(
        10.0,
        "AIBRIX_KV_IDLE_PROBE",
        "A source silent for this long is asked for what follows its last number.",
    )
    kv_stale_after_s: Duration = var(
        120.0,
        "AIBRIX_KV_STALE_AFTER",
        "A source from which nothing was heard for this long, not even an answer, is stale: not "
        "believed, and cleared where it has no replay port.",
    )
    kv_lost_after_s: Duration = var(
        60.0,
        "AIBRIX_KV_LOST_AFTER",
        "A source that cannot be reached for this long, or is stale for so long, is LOST and "
        "cleared.",
    )
    kv_heartbeat_s: Annotated[Duration, Field(ge=0.1, le=600)] = var(
        1.0,
        "AIBRIX_KV_HEARTBEAT",
        "How often a connection to an engine is tested; one that is silent for three of these "
        "is made anew.",
    )
    kv_max_message_bytes: Annotated[Size, Field(ge=1024)] = var(
        64 * 1024 * 1024,
        "AIBRIX_KV_MAX_MESSAGE_BYTES",
        "A longer message of an engine ends its connection.",
    )
    kv_curve_server_key_file: str = var(
        "",
        "AIBRIX_KV_CURVE_SERVER_KEY_FILE",
        "CURVE certificate of the engines (public key), as `zmq.auth` writes it. Unset: event "
        "streams are read in clear.",
    )
    kv_curve_client_key_file: str = var(
        "",
        "AIBRIX_KV_CURVE_CLIENT_KEY_FILE",
        "CURVE certificate of this server (with its secret key). Needs the one above.",
    )
