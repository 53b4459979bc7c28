"""An Envoy's configuration: from its admin page, from a file, or from standard input.

Owns the reading. What it means is for the checks.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aibrix_extproc.doctor.calls import Caller
from aibrix_extproc.doctor.envoy_dump import NotADump, read_document, read_dump
from aibrix_extproc.doctor.facts import EnvoyFacts, Missing

_STDIN = "-"


async def from_admin(caller: Caller, url: str) -> EnvoyFacts | Missing:
    """What a running Envoy says of its configuration and of its hosts' health."""
    answer = await caller.get(f"{url}/config_dump?include_eds")
    if answer.failure or answer.status != 200:
        why = answer.failure or f"it answers {answer.status}"
        return Missing(f"{url}/config_dump: {why}", True)
    hosts = await caller.get(f"{url}/clusters?format=json")
    unhealthy = _unhealthy(hosts.body) if hosts.status == 200 else None
    return await asyncio.to_thread(_parsed, answer.body.decode("utf-8", "replace"), url, unhealthy)


async def from_file(name: str) -> EnvoyFacts | Missing:
    """A dump or a bootstrap file; `-` is standard input."""
    try:
        text = await asyncio.to_thread(_text, name)
    except (OSError, UnicodeDecodeError) as error:
        return Missing(f"{name}: {error}", True)
    return await asyncio.to_thread(_parsed, text, name, None)


def _text(name: str) -> str:
    return sys.stdin.read() if name == _STDIN else Path(name).read_text()


def _parsed(
    text: str, where: str, unhealthy: Mapping[str, tuple[str, ...]] | None
) -> EnvoyFacts | Missing:
    try:
        return EnvoyFacts(read_dump(read_document(text)), where, unhealthy)
    except NotADump as error:
        return Missing(f"{where}: {error}", True)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        return Missing(f"{where}: it has another shape than Envoy's ({error})", True)


def _unhealthy(body: bytes) -> dict[str, tuple[str, ...]] | None:
    """Cluster → hosts whose active health check fails. None for an answer of another shape."""
    try:
        statuses = json.loads(body).get("cluster_statuses", [])
        return {
            str(cluster["name"]): down
            for cluster in statuses
            if (down := tuple(_down(cluster.get("host_statuses", []))))
        }
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _down(hosts: list[dict[str, Any]]) -> list[str]:
    found = []
    for host in hosts:
        if host.get("health_status", {}).get("failed_active_health_check"):
            socket = host.get("address", {}).get("socket_address", {})
            found.append(f"{socket.get('address')}:{socket.get('port_value')}")
    return found
