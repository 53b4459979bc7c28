"""Which requests go through the processor, by which route, and with what configuration. Pure.

Owns the matching of routes for the two paths that are decided by prompt, as far as it can be
known without a request: a matcher that looks at something else may or may not match.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from aibrix_extproc.doctor.envoy_dump import (
    Config,
    Dump,
    Filter,
    Manager,
    Route,
    VirtualHost,
    kind,
)
from aibrix_extproc.extproc.openai import CHAT_PATH, COMPLETION_PATH

EXT_PROC: Final = "ExternalProcessor"
DESTINATION: Final = "x-gateway-destination-endpoint"
TARGET_POD: Final = "target-pod"
RANK: Final = "x-data-parallel-rank"
PICKS: Final = (TARGET_POD, DESTINATION)

_ELSE: Final = (
    "query_parameters",
    "runtime_fraction",
    "grpc",
    "tls_context",
    "dynamic_metadata",
    "filter_state",
    "cookies",
)
"""What else a route may look at: known only with a request."""
_CLIENT: Final = {":method": "POST", "content-type": "application/json"}


class Fits(Enum):
    """Whether a route takes a request."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


@dataclass(frozen=True, slots=True)
class Use:
    """The requests of one path in one virtual host that start on one route."""

    manager: Manager
    host: VirtualHost
    start: Route
    filter: Filter
    config: Config | None
    """The filter's, with the route's overrides; None: the route has it off."""
    picked: tuple[Route, ...]
    """Where such a request may go once headers of a pick are set."""

    @property
    def where(self) -> str:
        """For the reader."""
        return f"{self.manager.listener}/{self.host.name}/{self.start.name}"


def ext_proc_filters(dump: Dump) -> list[tuple[Manager, Filter]]:
    """Every ext_proc filter, in the order of the listeners."""
    return [(m, f) for m in dump.managers for f in m.filters if f.kind == EXT_PROC]


def our_filters(dump: Dump, grpc_port: int) -> list[tuple[Manager, Filter]]:
    """Those that lead to this processor: where there are several, by the port of their cluster."""
    found = ext_proc_filters(dump)
    ours = [
        (m, f) for m, f in found if any(_port(a) == grpc_port for a in endpoints_of(dump, f.config))
    ]
    return ours or found


def endpoints_of(dump: Dump, config: Config) -> Sequence[str]:
    """The hosts of an ext_proc filter's cluster."""
    cluster = dump.clusters.get(cluster_of(config))
    return cluster.endpoints if cluster else ()


def cluster_of(config: Config) -> str:
    """The cluster of an ext_proc filter's gRPC service."""
    service = config.get("grpc_service", {})
    return str(service.get("envoy_grpc", {}).get("cluster_name", ""))


def uses(manager: Manager, one: Filter) -> Iterator[Use]:
    """Everything that may start a request for a completion or a chat, once each."""
    seen: set[tuple[str, str]] = set()
    for host in manager.hosts:
        for path in (CHAT_PATH, COMPLETION_PATH):
            for start in _first_of(host, path, {}):
                if (host.name, start.name) in seen:
                    continue
                seen.add((host.name, start.name))
                picked = _first_of(host, path, dict.fromkeys(PICKS, "10.0.0.1:8000"))
                yield Use(manager, host, start, one, _effective(one, start), tuple(picked))


def _effective(one: Filter, route: Route) -> Config | None:
    mine = route.per_filter.get(one.name)
    if mine is None:
        return None if one.disabled else one.config
    if kind(mine) == "FilterConfig":
        if mine.get("disabled"):
            return None
        mine = mine.get("config", {})
    if mine.get("disabled"):
        return None
    return {**one.config, **mine.get("overrides", {})}


# -- matching -------------------------------------------------------------------------------------


def _first_of(host: VirtualHost, path: str, picks: Mapping[str, str]) -> list[Route]:
    """The routes that such a request may take: up to the first that surely does."""
    headers = {**_CLIENT, ":path": path, **picks}
    found = []
    for route in host.routes:
        fits = _fits(route.match, path, headers)
        if fits is not Fits.NO:
            found.append(route)
        if fits is Fits.YES:
            break
    return found


def _fits(match: Config, path: str, headers: Mapping[str, str]) -> Fits:
    if not _path_fits(match, path):
        return Fits.NO
    answers = [_header_fits(one, headers) for one in match.get("headers", ())]
    if Fits.NO in answers:
        return Fits.NO
    known = Fits.MAYBE not in answers and not any(name in match for name in _ELSE)
    return Fits.YES if known else Fits.MAYBE


def _path_fits(match: Config, path: str) -> bool:
    if "prefix" in match:
        return path.startswith(str(match["prefix"]))
    if "path" in match:
        return path == str(match["path"])
    if "path_separated_prefix" in match:
        prefix = str(match["path_separated_prefix"])
        return path == prefix or path.startswith(f"{prefix}/")
    if "safe_regex" in match:
        return _regex(match["safe_regex"], path)
    return "connect_matcher" not in match


def _header_fits(matcher: Config, headers: Mapping[str, str]) -> Fits:
    name = str(matcher.get("name", "")).lower()
    if name not in headers and name not in PICKS:
        return Fits.MAYBE
    value = headers.get(name)
    if "present_match" in matcher:
        fits = (value is not None) is bool(matcher["present_match"])
    elif value is None:
        return Fits.NO
    elif "string_match" in matcher:
        fits = _string(matcher["string_match"], value)
    elif "exact_match" in matcher:
        fits = value == matcher["exact_match"]
    else:
        fits = True
    return Fits.NO if fits is bool(matcher.get("invert_match", False)) else Fits.YES


def _string(matcher: Config, value: str) -> bool:
    fold = str.lower if matcher.get("ignore_case") else str
    text = fold(value)
    tests: dict[str, Any] = {
        "exact": lambda wanted: text == fold(wanted),
        "prefix": lambda wanted: text.startswith(fold(wanted)),
        "suffix": lambda wanted: text.endswith(fold(wanted)),
        "contains": lambda wanted: fold(wanted) in text,
    }
    for name, test in tests.items():
        if name in matcher:
            return bool(test(str(matcher[name])))
    return _regex(matcher["safe_regex"], value) if "safe_regex" in matcher else True


def _regex(matcher: Config, text: str) -> bool:
    try:
        return re.fullmatch(str(matcher.get("regex", "")), text) is not None
    except re.error:
        return True


def _port(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0


def distinct(found: Sequence[Use]) -> list[Use]:
    """One use for each configuration of the filter."""
    by_config: dict[str, Use] = {}
    for use in found:
        if use.config is not None:
            by_config.setdefault(json.dumps(use.config, sort_keys=True), use)
    return list(by_config.values())
