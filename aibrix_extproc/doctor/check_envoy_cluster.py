"""Envoy's way to the processor: its cluster, retries, breakers and health checks. Pure.

Owns these codes.
"""

from collections.abc import Iterator
from typing import Any, Final

from aibrix_extproc.doctor.check_envoy_filter import all_uses, dump_of, envoy, grpc_port
from aibrix_extproc.doctor.envoy_dump import Cluster, Config, whole
from aibrix_extproc.doctor.envoy_uses import Use, cluster_of, distinct
from aibrix_extproc.doctor.facts import Facts
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity
from aibrix_extproc.extproc.health import LIVENESS, READINESS_NAMES

NO_CLUSTER: Final = Code(
    "envoy-processor-cluster",
    Area.ENVOY,
    Severity.RED,
    "the ext_proc filter names a cluster that does not exist, or has no host",
    "Name the processor's cluster in `grpc_service`, and its addresses in that.",
)
UNHEALTHY: Final = Code(
    "envoy-processor-unhealthy",
    Area.ENVOY,
    Severity.RED,
    "Envoy's health check of the processor fails",
    "Check the address and port, `/readyz`, and that the check asks for `readiness` by gRPC.",
)
PORT: Final = Code(
    "envoy-processor-port",
    Area.ENVOY,
    Severity.YELLOW,
    "no host of the processor's cluster has the port of `AIBRIX_EXTPROC_GRPC_ADDRESS`",
    "Correct the port; nothing, where it is mapped on the way.",
)
NOT_HTTP2: Final = Code(
    "envoy-processor-http2",
    Area.ENVOY,
    Severity.RED,
    "the processor's cluster does not speak HTTP/2, which gRPC needs",
    "Set `explicit_http_config: {http2_protocol_options: {}}` (Envoy Gateway does for a gRPC "
    "backend).",
)
TLS: Final = Code(
    "envoy-processor-tls",
    Area.ENVOY,
    Severity.RED,
    "Envoy and the processor do not agree on TLS",
    "Set the cluster's `transport_socket` where `AIBRIX_EXTPROC_GRPC_TLS_CERT` is set, and only "
    "there.",
)
MAX_REQUESTS: Final = Code(
    "envoy-breaker-requests",
    Area.ENVOY,
    Severity.RED,
    "the breaker of the processor's cluster bounds the requests in flight, as each holds a stream "
    "(YELLOW: below `AIBRIX_EXTPROC_MAX_STREAMS`)",
    "Raise `max_requests` and `max_pending_requests` to 100000 (their default is 1024).",
    milder=True,
)
MAX_RETRIES: Final = Code(
    "envoy-breaker-retries",
    Area.ENVOY,
    Severity.YELLOW,
    "few retries to the processor may run at once: a replica that dies costs decisions",
    "Raise `max_retries` of the processor's cluster to 1024 (its default is 3).",
)
NO_RETRY: Final = Code(
    "envoy-grpc-retry",
    Area.ENVOY,
    Severity.YELLOW,
    "a replica that dies costs a decision: the gRPC service has no retry policy",
    "Add `retry_policy` to `grpc_service` as in envoy/override-host.yaml (Envoy Gateway: "
    "`backendSettings.retry`).",
)
SAME_HOST: Final = Code(
    "envoy-grpc-retry-same-host",
    Area.ENVOY,
    Severity.YELLOW,
    "a retry may ask the dead replica again",
    "Add the retry predicate previous_hosts to the gRPC service's `retry_policy`.",
)
BALANCING: Final = Code(
    "envoy-processor-balancing",
    Area.ENVOY,
    Severity.YELLOW,
    "the processor's cluster is not ROUND_ROBIN: a dead replica, which has the fewest requests, "
    "is asked again",
    "Set `lb_policy: ROUND_ROBIN` (Envoy Gateway: `loadBalancer.type: RoundRobin`).",
)
NO_HEALTH_CHECK: Final = Code(
    "envoy-health-check",
    Area.ENVOY,
    Severity.YELLOW,
    "Envoy does not check the processor's health: it finds a dead replica by requests alone",
    "Add a `grpc_health_check` of the service `readiness` to the processor's cluster.",
)
HEALTH_NAME: Final = Code(
    "envoy-health-check-name",
    Area.ENVOY,
    Severity.RED,
    "Envoy's health check asks for what the processor does not answer",
    "Use `grpc_health_check: {service_name: readiness}`.",
)

_DEFAULT_REQUESTS: Final = 1024
_DEFAULT_RETRIES: Final = 3
_ENOUGH_RETRIES: Final = 100


def check_cluster(facts: Facts) -> Iterator[Finding]:
    """The cluster is there, healthy, and speaks as the processor does."""
    for use in distinct(all_uses(facts)):
        name = cluster_of(use.config or {})
        cluster = dump_of(facts).clusters.get(name)
        if cluster is None:
            service = "google_grpc" if "google_grpc" in _service(use) else f"the cluster {name!r}"
            if service != "google_grpc":
                yield NO_CLUSTER.found(use.where, f"{service} is not there")
            continue
        if not cluster.endpoints and not _is_by_name(cluster):
            yield NO_CLUSTER.found(name, f"the cluster {name} has no host")
        yield from _speaks(facts, cluster)
        down = (envoy(facts).unhealthy or {}).get(name)
        if down:
            yield UNHEALTHY.found(name, f"unhealthy: {', '.join(down)}")


def _speaks(facts: Facts, cluster: Cluster) -> Iterator[Finding]:
    if not _is_http2(cluster.config):
        yield NOT_HTTP2.found(cluster.name, f"the cluster {cluster.name} has no HTTP/2 options")
    serves_tls = bool(facts.settings.grpc_tls_cert)
    asks_tls = "tls" in str(cluster.config.get("transport_socket", {}).get("name", "")).lower()
    asks_tls = asks_tls or bool(cluster.config.get("transport_socket_matches"))
    if serves_tls is not asks_tls:
        there, here = (("TLS", "plain text"), ("plain text", "TLS"))[serves_tls]
        yield TLS.found(cluster.name, f"Envoy speaks {there}, the processor {here}")
    port = grpc_port(facts)
    ports = {endpoint.rpartition(":")[2] for endpoint in cluster.endpoints}
    if ports and port and str(port) not in ports and not _is_by_name(cluster):
        seen = f"its hosts have {', '.join(sorted(ports))}; the processor listens on {port}"
        yield PORT.found(cluster.name, seen)


def _is_by_name(cluster: Cluster) -> bool:
    return cluster.config.get("type") in {"STRICT_DNS", "LOGICAL_DNS"} or (
        "cluster_type" in cluster.config
    )


def _is_http2(config: Config) -> bool:
    if "http2_protocol_options" in config:
        return True
    for options in config.get("typed_extension_protocol_options", {}).values():
        explicit = options.get("explicit_http_config", {})
        if "http2_protocol_options" in explicit:
            return True
        if "auto_config" in options or "use_downstream_protocol_config" in options:
            return True
    return False


def _service(use: Use) -> Config:
    service: Config = (use.config or {}).get("grpc_service", {})
    return service


def _clusters(facts: Facts) -> Iterator[Cluster]:
    names = dict.fromkeys(cluster_of(use.config or {}) for use in distinct(all_uses(facts)))
    found = [c for name in names if (c := dump_of(facts).clusters.get(name))]
    if not found:
        raise NotLooked("the processor's cluster is not in the configuration")
    yield from found


def check_breakers(facts: Facts) -> Iterator[Finding]:
    """How many requests and retries may run at once."""
    for cluster in _clusters(facts):
        limits = default_thresholds(cluster.config)
        for name in ("max_requests", "max_pending_requests"):
            limit = whole(limits.get(name), _DEFAULT_REQUESTS)
            if limit < facts.settings.max_streams:
                mild = Severity.YELLOW if limit > _DEFAULT_REQUESTS else None
                said = "" if name in limits else " (its default)"
                yield MAX_REQUESTS.found(cluster.name, f"{name} is {limit}{said}", mild)
        retries = whole(limits.get("max_retries"), _DEFAULT_RETRIES)
        if retries < _ENOUGH_RETRIES and "retry_budget" not in limits:
            yield MAX_RETRIES.found(cluster.name, f"max_retries is {retries}")


def default_thresholds(config: Config) -> Config:
    """The thresholds of the usual priority; empty where none are set."""
    found: Any = config.get("circuit_breakers", {}).get("thresholds", ())
    return next((one for one in found if one.get("priority", "DEFAULT") == "DEFAULT"), {})


def check_retries(facts: Facts) -> Iterator[Finding]:
    """Another replica is asked where one is gone."""
    for use in distinct(all_uses(facts)):
        policy = _service(use).get("retry_policy")
        if not policy:
            yield NO_RETRY.found(use.where, "grpc_service has no retry_policy")
        elif not has_previous_hosts(policy):
            yield SAME_HOST.found(use.where, "its retry_policy has no previous_hosts")
    for cluster in _clusters(facts):
        policy = cluster.config.get("load_balancing_policy")
        name = str(cluster.config.get("lb_policy", "ROUND_ROBIN"))
        if policy is not None:
            first: Config = next(iter(policy.get("policies", ())), {})
            name = str(first.get("typed_extension_config", {}).get("name", ""))
        if name.rpartition(".")[2].upper() != "ROUND_ROBIN":
            yield BALANCING.found(cluster.name, f"its policy is {name}")


def has_previous_hosts(policy: Config) -> bool:
    """Whether a retry policy leaves out the hosts that have failed."""
    return any(
        "previous_hosts" in str(p.get("name")) for p in policy.get("retry_host_predicate", ())
    )


def check_health_checks(facts: Facts) -> Iterator[Finding]:
    """Envoy asks for the processor's readiness."""
    for cluster in _clusters(facts):
        checks = cluster.config.get("health_checks", ())
        if not checks:
            yield NO_HEALTH_CHECK.found(cluster.name, f"{cluster.name} has no health check")
        for one in checks:
            if "grpc_health_check" not in one:
                kind = next((name for name in one if name.endswith("_health_check")), "another")
                yield HEALTH_NAME.found(cluster.name, f"it is a {kind}, and the port speaks gRPC")
                continue
            name = str(one["grpc_health_check"].get("service_name", ""))
            if name not in {LIVENESS, *READINESS_NAMES}:
                yield HEALTH_NAME.found(cluster.name, f"it asks for the service {name!r}")


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
