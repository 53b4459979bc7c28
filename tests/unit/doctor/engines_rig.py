"""Engines of few words: HTTP pages that a test puts down, and ports of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.kv_publisher import KvPublisher
from tests.unit.doctor.doctor_rig import Site

OLD = {"vllm_version": "0.30.0"}
"""Before `/kv_event_sources`: what is written here is all that is known."""
PROMETHEUS = 'vllm:cache_config_info{{engine="0",block_size="{}",enable_prefix_caching="{}"}} 1.0\n'


def pages(**changes: Any) -> dict[str, Any]:
    """An engine that answers all that doctor asks over HTTP, rightly."""
    right: dict[str, Any] = {
        "/v1/models": {"data": [{"id": "tiny"}]},
        "/metrics": PROMETHEUS.format(16, "True"),
        "/tokenize": {"tokens": [1, 2, 3]},
    }
    return right | {path: page for path, page in changes.items() if page is not ...}


@asynccontextmanager
async def one_pod(
    folder: Path, address: str, events: Any = False, **settings: str
) -> AsyncIterator[Site]:
    here = Site(folder, [])
    here.environment |= settings
    here.pods = [{"name": "odd", "model": "tiny", "address": address, "kv_events": events}]
    yield here


def ports(of: KvPublisher) -> dict[str, Any]:
    return {"port": of.port, "replay_port": of.replay_port}
