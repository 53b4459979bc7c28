"""Which sources the command line means: endpoints written out, or those of an endpoints file.

Owns the notation `[name=]tcp://host:port[,tcp://host:replayport]`. Opens no socket.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aibrix_extproc.discovery.endpoints_format import BadEndpoints, parse_pods
from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.watched import Target

SHAPE: Final = "[NAME=]tcp://HOST:PORT[,tcp://HOST:REPLAY_PORT]"

_NAMED: Final = re.compile(r"([^=,/:]+)=(.*)")
_MAX_PORT: Final = 65_535


def parse_target(text: str) -> Target:
    """One source. Raises SettingsError that says what to write."""
    named = _NAMED.fullmatch(text)
    name, endpoints = (named[1], named[2]) if named else ("", text)
    parts = [part.strip() for part in endpoints.split(",")]
    if len(parts) > 2:
        raise SettingsError(f"{text!r} names {len(parts)} endpoints: write {SHAPE}")
    checked = [_endpoint(part, text) for part in parts]
    if len(checked) == 2 and checked[0] == checked[1]:
        raise SettingsError(f"{text!r}: the replay port must be another one than the event port")
    shown = name or checked[0].removeprefix("tcp://")
    return Target(shown, Rank(0, checked[0], checked[1] if len(checked) == 2 else None))


def parse_targets(texts: Sequence[str]) -> list[Target]:
    """Several sources, each once. Raises SettingsError."""
    targets = [parse_target(text) for text in texts]
    seen: set[str | None] = set()
    for target in targets:
        endpoint = target.rank.event_endpoint
        if endpoint in seen:
            raise SettingsError(f"{endpoint} is named twice")
        seen.add(endpoint)
    return targets


def read_targets(path: Path, settings: Settings) -> list[Target]:
    """Every rank of an endpoints file whose events are on. Raises SettingsError.

    Engines are not asked for their ports: those of the file, or of the settings, are taken.
    """
    try:
        text = path.read_text()
        pods = parse_pods(text, settings.kv_event_port, settings.kv_replay_port).pods
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"--endpoints-file: {path} cannot be read: {why}") from None
    except BadEndpoints as error:
        raise SettingsError(f"--endpoints-file: {path}: {error}") from None
    targets = []
    for pod in pods:
        for rank in pod.ranks:
            if rank.event_endpoint is not None:
                name = pod.key.removeprefix("default/")
                shown = f"{name}#{rank.rank}" if len(pod.ranks) > 1 else name
                targets.append(Target(shown, rank, pod.model, pod.lora_id))
    if not targets:
        raise SettingsError(f"--endpoints-file: no pod in {path} has kv_events: nothing to watch")
    return targets


def without_replay(target: Target) -> Target:
    """The same source, whose replay port is not asked."""
    rank = Rank(target.rank.rank, target.rank.event_endpoint)
    return Target(target.name, rank, target.model, target.lora_id)


def _endpoint(part: str, text: str) -> str:
    if part.startswith("ipc://") and len(part) > len("ipc://"):
        return part
    try:
        url = urlsplit(part)
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    bad = url.path or url.query or url.username if host else True
    if bad or not part.startswith("tcp://") or not port or host == "*" or port > _MAX_PORT:
        raise SettingsError(f"{text!r} is no source: write {SHAPE}, with an address or a name")
    return part
