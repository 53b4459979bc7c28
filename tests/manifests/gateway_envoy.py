"""Envoy Gateway's xDS as a file that an Envoy of its own can run: the same listener, routes and
clusters, with what a control plane sends later put in place, on the loopback.

Owns what is replaced, and nothing else is: addresses, `rds` by its routes, `EDS` by endpoints, the
access log's path. Knows no behaviour.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

Json = dict[str, Any]

PROCESSOR: Final = "envoyextensionpolicy/models/aibrix-extproc/extproc/0"
ENGINES: Final = "httproute/models/engines/rule/0"
UPLOADS: Final = "httproute/models/engines-uploads/rule/0"
EXT_PROC: Final = f"envoy.filters.http.ext_proc/{PROCESSOR}"


def config(xds: Json, processors: Sequence[str], engines: Sequence[str]) -> Json:
    """A configuration for `--config-path`; ports are chosen by Envoy. Addresses are `ip:port`."""
    listener = _untyped(xds["listener"])
    listener["address"] = {"socketAddress": _address("127.0.0.1:0")}
    manager = connection_manager(listener)
    del manager["rds"]
    manager["routeConfig"] = _untyped(xds["routes"])
    return {
        "admin": {"address": {"socketAddress": _address("127.0.0.1:0")}},
        "static_resources": {
            "listeners": [listener],
            "clusters": [
                _static(_untyped(one), processors if one["name"] == PROCESSOR else engines)
                for one in xds["clusters"]
            ],
        },
    }


def connection_manager(listener: Json) -> Json:
    """Of a listener as Envoy Gateway writes it."""
    filters = listener["defaultFilterChain"]["filters"]
    (found,) = (f for f in filters if f["name"].endswith("http_connection_manager"))
    manager: Json = found["typedConfig"]
    return manager


def manager_of(config: Json) -> Json:
    """The connection manager of a whole configuration."""
    (listener,) = config["static_resources"]["listeners"]
    return connection_manager(listener)


def ext_proc(manager: Json) -> Json:
    """The filter that asks the processor."""
    (found,) = (f for f in manager["httpFilters"] if f["name"] == EXT_PROC)
    processor: Json = found["typedConfig"]
    return processor


def cluster(config: Json, name: str) -> Json:
    """One cluster of a whole configuration."""
    (found,) = (c for c in config["static_resources"]["clusters"] if c["name"] == name)
    one: Json = found
    return one


def routes(config: Json) -> Iterator[Json]:
    """Every route of a whole configuration."""
    for host in manager_of(config)["routeConfig"]["virtualHosts"]:
        yield from host["routes"]


def _untyped(resource: Json) -> Json:
    """A resource without the type that it has on the wire: its place in the file says it."""
    return copy.deepcopy({k: v for k, v in resource.items() if k != "@type"})


def _static(cluster: Json, addresses: Sequence[str]) -> Json:
    if cluster["type"] != "EDS":
        return cluster
    static = {k: v for k, v in cluster.items() if k != "edsClusterConfig"}
    hosts = [
        {"endpoint": {"address": {"socketAddress": _address(one)}}, "loadBalancingWeight": 1}
        for one in addresses
    ]
    # One locality, with weights, as Envoy Gateway lays out the endpoints of one backend.
    locality = {"locality": {"region": f"{cluster['name']}/backend/0"}, "loadBalancingWeight": 1}
    static["type"] = "STATIC"
    static["loadAssignment"] = {
        "clusterName": cluster["name"],
        "endpoints": [locality | {"lbEndpoints": hosts}],
    }
    return static


def _address(text: str) -> Json:
    host, _, port = text.rpartition(":")
    return {"address": host, "portValue": int(port)}
