"""The way of a pick through Envoy: from the headers set here to the pod that is dialled. Pure.

Owns these codes.
"""

from collections.abc import Iterator
from typing import Any, Final

from aibrix_extproc.doctor.check_envoy_cluster import default_thresholds, has_previous_hosts
from aibrix_extproc.doctor.check_envoy_filter import all_uses, dump_of, envoy
from aibrix_extproc.doctor.envoy_dump import Cluster, Config, Route, kind, typed, whole
from aibrix_extproc.doctor.envoy_uses import DESTINATION, PICKS, Use
from aibrix_extproc.doctor.facts import Facts, Missing
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

UNUSED: Final = Code(
    "envoy-pick-unused",
    Area.ENVOY,
    Severity.RED,
    "the engines' cluster looks at no pick: Envoy balances by itself (YELLOW: other routes do)",
    "Use the policy override_host as in envoy/override-host.yaml (Envoy Gateway: "
    "BackendTrafficPolicy, `loadBalancer.endpointOverride`), or an ORIGINAL_DST cluster.",
    milder=True,
)
NO_ENGINES: Final = Code(
    "envoy-engines-cluster",
    Area.ENVOY,
    Severity.RED,
    "a route names a cluster that does not exist, or the engines' cluster has no host",
    "Name the engines' cluster on the route, and the pods' addresses in the cluster.",
)
SOURCE: Final = Code(
    "envoy-override-host-source",
    Area.ENVOY,
    Severity.RED,
    "override_host looks for the pick where none is",
    "Name the header x-gateway-destination-endpoint in `override_host_sources`.",
)
TWO_SOURCES: Final = Code(
    "envoy-override-host-sources",
    Area.ENVOY,
    Severity.YELLOW,
    "override_host looks in several places, and joins them: retries go round the same pods twice",
    "Name the header alone.",
)
NAMESPACES: Final = Code(
    "envoy-receiving-namespaces",
    Area.ENVOY,
    Severity.RED,
    "the pick is looked for in metadata that the filter may not set: Envoy drops it silently",
    "Set `metadata_options.receiving_namespaces.untyped: [envoy.lb]`, or use the header.",
)
DST_HEADER: Final = Code(
    "envoy-original-dst-header",
    Area.ENVOY,
    Severity.RED,
    "the ORIGINAL_DST cluster does not dial what `target-pod` says",
    "Set `original_dst_lb_config: {use_http_header: true, http_header_name: target-pod}`.",
)
DST_LIST: Final = Code(
    "envoy-original-dst-alternatives",
    Area.ENVOY,
    Severity.RED,
    "the ORIGINAL_DST cluster is given a list of pods, of which it can dial none: a 503",
    "Set `AIBRIX_EXTPROC_ALTERNATIVES` to 1, or use the header target-pod.",
)
REMOVED: Final = Code(
    "envoy-pick-removed",
    Area.ENVOY,
    Severity.RED,
    "the pick's header is taken away before a host is chosen",
    "Remove it from `request_headers_to_remove`, and from header mutations after the processor; "
    "strip clients' headers by `early_header_mutation_extensions`.",
)
ROUTE_CACHE: Final = Code(
    "envoy-route-cache",
    Area.ENVOY,
    Severity.RED,
    "a route matches the pick's header, and the filter keeps the route that was chosen before it",
    "Remove `route_cache_action: RETAIN` and `disable_clear_route_cache`.",
)
POD_UNKNOWN: Final = Code(
    "envoy-pod-unknown",
    Area.ENVOY,
    Severity.RED,
    "override_host dials only hosts of its cluster, and a pod is none: its picks go to the "
    "fallback",
    "Add the pod's address to the engines' cluster; check the Service's selector and port.",
)
HOST_UNKNOWN: Final = Code(
    "envoy-host-unknown",
    Area.ENVOY,
    Severity.YELLOW,
    "the engines' cluster has a host that is no pod here: only the fallback sends requests there",
    "List it as a pod, or take it out of the cluster.",
)
HOST_UNHEALTHY: Final = Code(
    "envoy-engine-unhealthy",
    Area.ENVOY,
    Severity.YELLOW,
    "Envoy's health check of an engine fails",
    "Look at the engine, and at the path of the check (/health).",
)
UNSAFE_RETRY: Final = Code(
    "envoy-engine-retry-unsafe",
    Area.ENVOY,
    Severity.YELLOW,
    "an engine that has a request already may be given it again: it generates twice",
    "Retry on connect-failure,refused-stream,reset-before-request alone.",
)
FEW_RETRIES: Final = Code(
    "envoy-engine-retries",
    Area.ENVOY,
    Severity.YELLOW,
    "a pod that is down is an error though there are alternatives",
    "Retry as often as `AIBRIX_EXTPROC_ALTERNATIVES` (3) on connect-failure,refused-stream,"
    "reset-before-request.",
)
SAME_POD: Final = Code(
    "envoy-engine-retry-same-host",
    Area.ENVOY,
    Severity.YELLOW,
    "the fallback may choose the pod again that has just failed",
    "Add the retry predicate previous_hosts to the route's `retry_policy`.",
)
BREAKERS: Final = Code(
    "envoy-engine-breakers",
    Area.ENVOY,
    Severity.YELLOW,
    "the breaker of the engines' cluster bounds the requests in flight of all pods together",
    "Raise `max_requests`, `max_pending_requests` and `max_connections` to 100000 (their default "
    "is 1024).",
)

_OVERRIDE: Final = "OverrideHost"
_SAFE: Final = frozenset({"connect-failure", "refused-stream", "reset-before-request"})
_DEFAULT_BREAKER: Final = 1024


def _policy(cluster: Cluster) -> Config | None:
    """The override_host policy of a cluster."""
    for one in cluster.config.get("load_balancing_policy", {}).get("policies", ()):
        config = typed(one.get("typed_extension_config", {}))
        if kind(config) == _OVERRIDE:
            return config
    return None


def _is_original_dst(cluster: Cluster) -> bool:
    return bool(cluster.config.get("type") == "ORIGINAL_DST")


def _is_empty(cluster: Cluster) -> bool:
    """STATIC without hosts: where nothing is to go."""
    return cluster.config.get("type", "STATIC") == "STATIC" and not cluster.endpoints


def _ways(facts: Facts) -> Iterator[tuple[Use, Route, str, Cluster | None]]:
    """Each cluster that a picked request may go to, once for each route."""
    clusters, seen = dump_of(facts).clusters, set()
    for use in all_uses(facts):
        for route in use.picked if use.config is not None else ():
            for name in route.clusters:
                if (use.host.name, route.name, name) not in seen:
                    seen.add((use.host.name, route.name, name))
                    yield use, route, name, clusters.get(name)


def _engines(facts: Facts) -> list[tuple[Use, Route, Cluster]]:
    found = [
        (use, route, cluster)
        for use, route, _, cluster in _ways(facts)
        if cluster and (_policy(cluster) is not None or _is_original_dst(cluster))
    ]
    if not found:
        raise NotLooked("no cluster looks at a pick")
    return found


def check_pick_used(facts: Facts) -> Iterator[Finding]:
    """The cluster after a pick looks at it."""
    ways = list(_ways(facts))
    clusters = dump_of(facts).clusters
    for use in all_uses(facts):
        missing = [name for name in use.start.clusters if name not in clusters]
        if use.config is not None and missing:
            yield NO_ENGINES.found(use.where, f"the cluster {missing[0]} is not there")
    used = any(c and (_policy(c) is not None or _is_original_dst(c)) for *_, c in ways)
    for use, route, name, cluster in ways:
        where = f"{use.host.name}/{route.name}"
        if cluster is None:
            if route != use.start:
                yield NO_ENGINES.found(where, f"the cluster {name} is not there")
        elif _policy(cluster) is not None:
            if not cluster.endpoints and not _dynamic(cluster):
                yield NO_ENGINES.found(where, f"the cluster {name} has no host")
        elif not _is_original_dst(cluster) and not (used and _is_empty(cluster)):
            how = cluster.config.get("lb_policy", "ROUND_ROBIN")
            yield UNUSED.found(
                where, f"the cluster {name} is balanced by {how}", Severity.YELLOW if used else None
            )


def _dynamic(cluster: Cluster) -> bool:
    return cluster.config.get("type") in {"STRICT_DNS", "LOGICAL_DNS"}


def check_sources(facts: Facts) -> Iterator[Finding]:
    """Where the pick is read is where it is written."""
    for use, route, cluster in _engines(facts):
        where = f"cluster {cluster.name}"
        policy = _policy(cluster)
        if policy is not None:
            yield from _override(use, where, policy)
        else:
            yield from _original(facts, use, where, cluster.config.get("original_dst_lb_config"))
        gone = sorted(set(_read(cluster)) & {*route.removed, *_mutated(use)})
        if gone:
            yield REMOVED.found(f"{use.host.name}/{route.name}", f"removed: {', '.join(gone)}")


def _override(use: Use, where: str, policy: Config) -> Iterator[Finding]:
    sources = policy.get("override_host_sources", ())
    right = 0
    for one in sources:
        header = str(one.get("header", "")).lower()
        if header in PICKS:
            right += 1
        elif "metadata" in one and _is_ours(one["metadata"]):
            right += 1
            if not _may_set(use):
                yield NAMESPACES.found(where, "receiving_namespaces has no envoy.lb")
        else:
            yield SOURCE.found(where, f"it looks in {header or one.get('metadata')}")
    if not sources:
        yield SOURCE.found(where, "it names no source")
    if right > 1:
        yield TWO_SOURCES.found(where, f"it names {right} sources")


def _original(facts: Facts, use: Use, where: str, config: Config | None) -> Iterator[Finding]:
    config = config or {}
    header = str(config.get("http_header_name", "x-envoy-original-dst-host")).lower()
    metadata = config.get("metadata_key")
    if metadata is not None and not config.get("use_http_header"):
        if not _is_ours(metadata):
            yield DST_HEADER.found(where, f"it looks in the metadata {metadata}")
            return
        if not _may_set(use):
            yield NAMESPACES.found(where, "receiving_namespaces has no envoy.lb")
        header = DESTINATION
    elif not config.get("use_http_header"):
        yield DST_HEADER.found(where, "use_http_header is false")
        return
    elif header not in PICKS:
        yield DST_HEADER.found(where, f"it looks at {header}")
        return
    if header == DESTINATION and facts.settings.alternatives > 1:
        seen = f"it reads {header}, and AIBRIX_EXTPROC_ALTERNATIVES is "
        yield DST_LIST.found(where, f"{seen}{facts.settings.alternatives}")


def _is_ours(metadata: Config) -> bool:
    path = [str(one.get("key", "")) for one in metadata.get("path", ())]
    return metadata.get("key") == "envoy.lb" and path == [DESTINATION]


def _may_set(use: Use) -> bool:
    options: Any = (use.config or {}).get("metadata_options", {})
    return "envoy.lb" in options.get("receiving_namespaces", {}).get("untyped", ())


def _read(cluster: Cluster) -> list[str]:
    """The headers that a cluster reads."""
    policy = _policy(cluster)
    if policy is not None:
        return [str(s.get("header", "")).lower() for s in policy.get("override_host_sources", ())]
    return [str(cluster.config.get("original_dst_lb_config", {}).get("http_header_name", ""))]


def _mutated(use: Use) -> set[str]:
    """Headers that a mutation filter after ours removes."""
    after = use.manager.filters[use.manager.filters.index(use.filter) + 1 :]
    return {
        str(mutation["remove"]).lower()
        for one in after
        if one.kind == "HeaderMutation" and not one.disabled
        for mutation in one.config.get("mutations", {}).get("request_mutations", ())
        if "remove" in mutation
    }


def check_route_cache(facts: Facts) -> Iterator[Finding]:
    """The reply that carries a pick chooses the route anew."""
    for use in all_uses(facts):
        config = use.config or {}
        keeps = config.get("route_cache_action") in {"RETAIN", 2}
        keeps = keeps or bool(config.get("disable_clear_route_cache"))
        if keeps and use.start not in use.picked:
            yield ROUTE_CACHE.found(use.where, "the filter keeps the route")


def check_hosts(facts: Facts) -> Iterator[Finding]:
    """The pods here and the hosts there are the same."""
    if isinstance(facts.pods, Missing):
        raise NotLooked("the pods are not known")
    if not facts.pods.pods:
        raise NotLooked("there are no pods")
    pods = {pod.address: pod.key for pod in facts.pods.pods}
    clusters = {c.name: c for *_, c in _engines(facts) if _policy(c) is not None}
    fixed = [c for c in clusters.values() if c.endpoints and not _dynamic(c)]
    if not fixed:
        raise NotLooked("no cluster of engines lists its hosts")
    hosts = {host: cluster.name for cluster in fixed for host in cluster.endpoints}
    for address, key in pods.items():
        if address not in hosts:
            yield POD_UNKNOWN.found(key, f"{address} is no host of {', '.join(sorted(clusters))}")
    for host, name in hosts.items():
        if host not in pods:
            yield HOST_UNKNOWN.found(f"cluster {name}", f"{host} is no pod")
    for name, down in (envoy(facts).unhealthy or {}).items():
        if name in clusters:
            yield HOST_UNHEALTHY.found(f"cluster {name}", f"unhealthy: {', '.join(down)}")


def check_engine_retries(facts: Facts) -> Iterator[Finding]:
    """Another pod is tried, and no prompt is generated twice."""
    for use, route, cluster in _engines(facts):
        where = f"{use.host.name}/{route.name}"
        conditions = {c.strip() for c in str(route.retry.get("retry_on", "")).split(",")} - {""}
        unsafe = sorted(conditions - _SAFE)
        if unsafe:
            yield UNSAFE_RETRY.found(where, f"it retries on {', '.join(unsafe)}")
        if _policy(cluster) is None:
            continue
        tries = whole(route.retry.get("num_retries"), 1) if conditions else 0
        if tries < facts.settings.alternatives:
            wanted = facts.settings.alternatives
            yield FEW_RETRIES.found(where, f"{tries} retries, {wanted} pods are named")
        elif not has_previous_hosts(route.retry):
            yield SAME_POD.found(where, "its retry_policy has no previous_hosts")


def check_engine_breakers(facts: Facts) -> Iterator[Finding]:
    """Queues belong to the engines."""
    clusters = {cluster.name: cluster for *_, cluster in _engines(facts)}
    for cluster in clusters.values():
        limits = default_thresholds(cluster.config)
        low = [
            f"{name} is {limit}"
            for name in ("max_requests", "max_pending_requests", "max_connections")
            if (limit := whole(limits.get(name), _DEFAULT_BREAKER)) <= _DEFAULT_BREAKER
        ]
        if low:
            yield BREAKERS.found(f"cluster {cluster.name}", ", ".join(low))


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
