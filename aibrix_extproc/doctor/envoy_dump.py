"""An Envoy's configuration as plain data → listeners, routes and clusters. Pure.

Owns the shapes in which a configuration comes: Envoy's `/config_dump?include_eds`, a static
bootstrap file, and what holds one of them (Envoy Gateway's `egctl`). Names may be in camelCase.
What a configuration should be is for the checks.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Config = Mapping[str, Any]

_CAPITAL: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")
_CAMEL: Final = re.compile(r"[a-z][a-zA-Z0-9]*")
_DURATION: Final = re.compile(r"([0-9.]+)s")


class NotADump(ValueError):
    """The document holds no Envoy configuration; the message says what it should be."""


@dataclass(frozen=True, slots=True)
class Filter:
    """An HTTP filter of a connection manager."""

    name: str
    kind: str
    """The last part of its type: `ExternalProcessor`, `Router`, …"""
    config: Config
    disabled: bool = False
    """Off, unless a route switches it on."""


@dataclass(frozen=True, slots=True)
class Route:
    """One route, with what it takes over from its virtual host."""

    name: str
    match: Config
    action: Config
    """The `route` action; empty for a redirect or a direct response."""
    direct: bool
    per_filter: Mapping[str, Config]
    buffer_limit_bytes: int | None
    retry: Config
    removed: tuple[str, ...]
    """Request headers taken away before a host is chosen, lower-case."""

    @property
    def clusters(self) -> tuple[str, ...]:
        """The clusters that it may go to; none where a header names the cluster."""
        if "cluster" in self.action:
            return (str(self.action["cluster"]),)
        weighted = self.action.get("weighted_clusters", {}).get("clusters", ())
        return tuple(str(one.get("name", "")) for one in weighted)


@dataclass(frozen=True, slots=True)
class VirtualHost:
    name: str
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class Manager:
    """One HTTP connection manager."""

    listener: str
    config: Config
    filters: tuple[Filter, ...]
    hosts: tuple[VirtualHost, ...]
    connection_limit_bytes: int
    """`per_connection_buffer_limit_bytes`, 1 MiB where it is not set."""


@dataclass(frozen=True, slots=True)
class Cluster:
    name: str
    config: Config
    endpoints: tuple[str, ...]
    """`ip:port` of each."""


@dataclass(frozen=True, slots=True)
class Dump:
    """All that the checks look at."""

    managers: tuple[Manager, ...]
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    admin: str = ""
    """`ip:port` of the admin page; empty where the bootstrap is not in the dump."""


def read_document(text: str) -> Config:
    """JSON or YAML, its names in snake_case. Raises NotADump."""
    try:
        document = json.loads(text)
    except ValueError:
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError:
            raise NotADump("it is neither JSON nor YAML") from None
    if not isinstance(document, dict):
        raise NotADump(
            "it is no Envoy configuration: give what /config_dump?include_eds answers, or a static "
            "bootstrap file"
        )
    found: Config = _snake(document)
    return found


def read_dump(document: Config) -> Dump:
    """The parts of a document of `read_document`. Raises NotADump."""
    sections = list(_sections(document))
    listeners = [one for section in sections for one in _listeners(section)]
    clusters = [one for section in sections for one in _clusters(section)]
    if not listeners and not clusters:
        raise NotADump(
            "there is no listener and no cluster in it: give what /config_dump?include_eds "
            "answers, or a static bootstrap file"
        )
    routes = {str(r.get("name", "")): r for section in sections for r in _route_configs(section)}
    discovered = {
        str(f.get("name", "")): f.get("typed_config", {})
        for section in sections
        for f in _inner(section, "ecds_filters", "ecds_filter")
    }
    managers = [m for one in listeners for m in _managers(one, routes, discovered)]
    endpoints = _endpoints(sections)
    named = {str(c.get("name", "")): _cluster(c, endpoints) for c in clusters}
    admin = next((a for section in sections if (a := _admin(section))), "")
    return Dump(tuple(managers), named, admin)


# -- where things stand ---------------------------------------------------------------------------


def _sections(document: Any) -> Iterator[Config]:
    """Each `…ConfigDump` object, and each bootstrap, wherever it stands."""
    if isinstance(document, list):
        for one in document:
            yield from _sections(one)
    elif isinstance(document, dict):
        if "static_resources" in document or str(document.get("@type", "")).endswith("ConfigDump"):
            yield document
            return
        for one in document.values():
            yield from _sections(one)


def _listeners(section: Config) -> Iterator[Config]:
    yield from section.get("static_resources", {}).get("listeners", ())
    yield from _inner(section, "static_listeners", "listener")
    for one in section.get("dynamic_listeners", ()):
        state = one.get("active_state") or one.get("warming_state") or {}
        if "listener" in state:
            yield state["listener"]


def _clusters(section: Config) -> Iterator[Config]:
    yield from section.get("static_resources", {}).get("clusters", ())
    for name in ("static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters"):
        yield from _inner(section, name, "cluster")


def _route_configs(section: Config) -> Iterator[Config]:
    for name in ("static_route_configs", "dynamic_route_configs"):
        yield from _inner(section, name, "route_config")


def _endpoints(sections: Sequence[Config]) -> dict[str, Config]:
    return {
        str(one.get("cluster_name", "")): one
        for section in sections
        for name in ("static_endpoint_configs", "dynamic_endpoint_configs")
        for one in _inner(section, name, "endpoint_config")
    }


def _inner(section: Config, outer: str, inner: str) -> Iterator[Config]:
    for one in section.get(outer, ()):
        if inner in one:
            yield one[inner]


def _admin(section: Config) -> str:
    bootstrap = section.get("bootstrap", section)
    return _socket(bootstrap.get("admin", {}).get("address", {}))


# -- listeners and routes -------------------------------------------------------------------------


def _managers(
    listener: Config, routes: Mapping[str, Config], discovered: Mapping[str, Config]
) -> Iterator[Manager]:
    chains = [*listener.get("filter_chains", ()), listener.get("default_filter_chain", {})]
    limit = whole(listener.get("per_connection_buffer_limit_bytes"), 1024 * 1024)
    for network in (one for chain in chains for one in chain.get("filters", ())):
        config = typed(network)
        if kind(config) != "HttpConnectionManager":
            continue
        filters = [_filter(one, discovered) for one in config.get("http_filters", ())]
        found = config.get("route_config")
        if found is None:
            found = routes.get(str(config.get("rds", {}).get("route_config_name", "")), {})
        hosts = [_host(one, found) for one in found.get("virtual_hosts", ())]
        name = str(listener.get("name", ""))
        yield Manager(name, config, tuple(filters), tuple(hosts), limit)


def _filter(one: Config, discovered: Mapping[str, Config]) -> Filter:
    name = str(one.get("name", ""))
    config = typed(one) if "typed_config" in one else typed(discovered.get(name, {}))
    return Filter(name, kind(config), config, bool(one.get("disabled", False)))


def _host(host: Config, routes: Config) -> VirtualHost:
    outer = dict(routes.get("typed_per_filter_config", {}))
    outer |= host.get("typed_per_filter_config", {})
    removed = (*routes.get("request_headers_to_remove", ()), *_removed(host))
    found = [_route(one, host, outer, removed) for one in host.get("routes", ())]
    return VirtualHost(str(host.get("name", "")), tuple(found))


def _route(
    route: Config, host: Config, outer: Mapping[str, Config], removed: tuple[str, ...]
) -> Route:
    action = route.get("route", {})
    limit = route.get("request_body_buffer_limit", host.get("request_body_buffer_limit"))
    names = (*removed, *_removed(route))
    return Route(
        name=str(route.get("name", "")) or json.dumps(route.get("match", {})),
        match=route.get("match", {}),
        action=action,
        direct="route" not in route,
        per_filter=outer | route.get("typed_per_filter_config", {}),
        buffer_limit_bytes=None if limit is None else whole(limit, 0),
        retry=action.get("retry_policy", host.get("retry_policy", {})),
        removed=tuple(name.lower() for name in names),
    )


def _removed(config: Config) -> Sequence[str]:
    found: Sequence[str] = config.get("request_headers_to_remove", ())
    return found


# -- clusters -------------------------------------------------------------------------------------


def _cluster(config: Config, endpoints: Mapping[str, Config]) -> Cluster:
    name = str(config.get("name", ""))
    service = config.get("eds_cluster_config", {}).get("service_name") or name
    assignment = endpoints.get(service) or endpoints.get(name) or config.get("load_assignment", {})
    addresses = [
        _socket(one.get("endpoint", {}).get("address", {}))
        for group in assignment.get("endpoints", ())
        for one in group.get("lb_endpoints", ())
    ]
    return Cluster(name, config, tuple(address for address in addresses if address))


def _socket(address: Config) -> str:
    socket = address.get("socket_address", {})
    if "address" not in socket:
        return ""
    host = str(socket["address"])
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{whole(socket.get('port_value'), 0)}"


# -- values ---------------------------------------------------------------------------------------


def typed(holder: Config) -> Config:
    """The `typed_config` of a filter or extension, out of a TypedStruct where it is in one."""
    config: Config = holder.get("typed_config", holder)
    if kind(config) == "TypedStruct":
        return {"@type": config.get("type_url", ""), **config.get("value", {})}
    return config


def kind(config: Config) -> str:
    """The last part of a type."""
    return str(config.get("@type", "")).rpartition(".")[2]


def whole(value: Any, default: int) -> int:
    """A number, also as the text in which JSON has 64 bits; the default where there is none."""
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError):
        return default


def seconds(value: Any, default: float) -> float:
    """A duration (`0.200s`); the default where it is not set."""
    if value is None:
        return default
    match = _DURATION.fullmatch(str(value).strip())
    return float(match[1]) if match else default


def _snake(value: Any) -> Any:
    """Names in snake_case; a text that is no camelCase name (a filter's, a header's) stays."""
    if isinstance(value, dict):
        return {_snake_name(str(name)): _snake(one) for name, one in value.items()}
    return [_snake(one) for one in value] if isinstance(value, list) else value


def _snake_name(name: str) -> str:
    return _CAPITAL.sub(r"_\1", name).lower() if _CAMEL.fullmatch(name) else name
