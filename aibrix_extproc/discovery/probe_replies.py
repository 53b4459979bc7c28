"""What an engine's `/v1/models` and `/kv_event_sources` say. Pure: bytes in, facts out.

Owns the bounds on names and ranks, so that no engine can fill the table of names.
"""

from typing import Final
from urllib.parse import urlsplit

import msgspec

from aibrix_extproc.discovery import ports
from aibrix_extproc.discovery.pods import ListedModel, Rank

MAX_NAMES: Final = 1000
"""Names taken from one pod."""
MAX_NAME_CHARS: Final = 512


class BadReply(ValueError):
    """The reply is not what the engine's API promises; what was known of the pod stays."""


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Source(msgspec.Struct):
    enable_kv_cache_events: bool = True
    publisher: str | None = "zmq"
    endpoint: str | None = None
    replay_endpoint: str | None = None


_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The last: brackets within brackets, without end."""
_models_decoder: Final = msgspec.json.Decoder(_Models)
_sources_decoder: Final = msgspec.json.Decoder(dict[str, _Source])


def parse_models(body: bytes) -> tuple[tuple[ListedModel, ...], int]:
    """The models that a pod lists, and how many of its names are left out.

    Left out are names past MAX_NAMES, empty ones and those longer than MAX_NAME_CHARS. Raises
    BadReply.
    """
    try:
        entries = _models_decoder.decode(body).data
    except _UNREADABLE as error:
        raise BadReply(str(error)) from None
    distinct = {entry.id: entry.parent for entry in reversed(entries)}
    fit = [name for name in reversed(distinct) if 0 < len(name) <= MAX_NAME_CHARS][:MAX_NAMES]
    models = tuple(ListedModel(name, distinct[name]) for name in fit)
    return models, len(distinct) - len(models)


def parse_sources(body: bytes, address: str) -> tuple[Rank, ...]:
    """The ranks of a pod at `address` (`ip:port`), sorted, each with the pod's IP as host.

    The reply (vLLM 0.31 and later) maps each rank's number to its resolved configuration, whose
    host is a wildcard. A rank whose events are off, or go to something else than ZMQ over TCP,
    has no endpoint. Raises BadReply.
    """
    try:
        sources = _sources_decoder.decode(body)
    except _UNREADABLE as error:
        raise BadReply(str(error)) from None
    if len(sources) > ports.MAX_RANKS:
        raise BadReply(f"{len(sources)} ranks")
    ip, _ = ports.split_host_port(address)
    ranks = [_rank(number, source, ip) for number, source in sources.items()]
    return tuple(sorted(ranks, key=lambda rank: rank.rank))


def _rank(number: str, source: _Source, ip: str) -> Rank:
    if not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise BadReply(f"{number[:20]!r} is no rank")
    if not source.enable_kv_cache_events or source.publisher != "zmq" or not source.endpoint:
        return Rank(int(number))
    events = _reachable(source.endpoint, ip)
    replays = _reachable(source.replay_endpoint, ip) if source.replay_endpoint and events else None
    return Rank(int(number), events, replays)


def _reachable(endpoint: str, ip: str) -> str | None:
    """The endpoint with the pod's IP for its host; None where it is not TCP (ipc, inproc)."""
    if not endpoint.startswith("tcp://"):
        return None
    try:
        port = urlsplit(endpoint).port
    except ValueError:
        port = None
    if not port:
        raise BadReply(f"{endpoint[:100]!r} has no port")
    return ports.tcp_endpoint(ip, port)
