"""Manifests of envoy/gateway spoilt in one place each, and what must be said of it: by the stand-in
of `crds.py` (tests/unit/gateway), and by a real API server (tests/kube).
"""

import copy
from collections.abc import Callable
from typing import Any

from tests.manifests.gateway_sets import BASE

Json = dict[str, Any]


def shipped(kind: str) -> Json:
    """The first object of that kind in the base, to be changed."""
    return copy.deepcopy(next(obj for obj in BASE.objects() if obj["kind"] == kind))


def spoilt(name: str) -> Json:
    """One of `REFUSED`, as it would be applied."""
    kind, spoil, _ = REFUSED[name]
    obj = shipped(kind)
    spoil(obj)
    return obj


def first_ext_proc(obj: Json) -> Json:
    found: Json = obj["spec"]["extProc"][0]
    return found


def balancer(obj: Json) -> Json:
    found: Json = obj["spec"]["loadBalancer"]
    return found


def duplex(obj: Json) -> None:
    first_ext_proc(obj)["processingMode"]["request"]["body"] = "FullDuplexStreamed"


REFUSED: dict[str, tuple[str, Callable[[Json], Any], str]] = {
    "duplex that fails open": ("EnvoyExtensionPolicy", duplex, "FailOpen must be false"),
    "backendRef": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o).update(backendRef={"name": "x", "port": 1}),
        "backendRef is not supported",
    ),
    "processor of a strange kind": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o)["backendRefs"][0].update(kind="Pod"),
        "only supports Service",
    ),
    "processor without a port": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o)["backendRefs"][0].pop("port"),
        "port",
    ),
    "metadata of Envoy's own filters": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o)["metadata"].update(writableNamespaces=["envoy.filters.http.x"]),
        "cannot contain well-known",
    ),
    "an attribute with no such prefix": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o)["processingMode"]["response"].update(attributes=["host.name"]),
        "does not match",
    ),
    "a gRPC health check that says HTTP": (
        "EnvoyExtensionPolicy",
        lambda o: first_ext_proc(o)["backendSettings"]["healthCheck"]["active"].update(type="HTTP"),
        "http field needs to be set",
    ),
    "a policy of nothing": (
        "EnvoyExtensionPolicy",
        lambda o: o["spec"].pop("targetRefs"),
        "either targetRef or targetRefs",
    ),
    "a policy of a Service": (
        "EnvoyExtensionPolicy",
        lambda o: o["spec"]["targetRefs"][0].update(kind="Service"),
        "targetRefs",
    ),
    "a hash without what is hashed": (
        "BackendTrafficPolicy",
        lambda o: balancer(o).update(type="ConsistentHash"),
        "consistentHash field needs to be set",
    ),
    "an override of nothing": (
        "BackendTrafficPolicy",
        lambda o: balancer(o)["endpointOverride"].update(extractFrom=[]),
        "should be non-empty",
    ),
    "an override without its sources": (
        "BackendTrafficPolicy",
        lambda o: balancer(o)["endpointOverride"].pop("extractFrom"),
        "'extractFrom' is a required property",
    ),
    "an override of metadata, which Envoy Gateway has not": (
        "BackendTrafficPolicy",
        lambda o: balancer(o)["endpointOverride"].update(extractFrom=[{"metadata": "envoy.lb"}]),
        "'metadata' was unexpected",
    ),
    "a trigger of retries that is none": (
        "BackendTrafficPolicy",
        lambda o: o["spec"]["retry"]["retryOn"]["triggers"].append("always"),
        "'always' is not one of",
    ),
    "a duration without a unit": (
        "BackendTrafficPolicy",
        lambda o: o["spec"]["timeout"]["tcp"].update(connectTimeout="1"),
        "does not match",
    ),
    "a limit of the wrong shape": (
        "ClientTrafficPolicy",
        lambda o: o["spec"]["connection"].update(bufferLimit="16 MiB"),
        "does not match",
    ),
    "a delay of connections that are not limited": (
        "ClientTrafficPolicy",
        lambda o: o["spec"]["connection"].update(connectionLimit={"closeDelay": "1s"}),
        "closeDelay can only be configured when value is set|'value' is a required property",
    ),
    "a header's name twice": (
        "ClientTrafficPolicy",
        lambda o: o["spec"]["headers"]["earlyRequestHeaders"]["remove"].append("target-pod"),
        "stands there twice",
    ),
    "a field that is not there": (
        "ClientTrafficPolicy",
        lambda o: o["spec"].update(bufferLimit="16Mi"),
        "'bufferLimit' was unexpected",
    ),
    "a path without its slash": (
        "HTTPRoute",
        lambda o: o["spec"]["rules"][0]["matches"][0].update(path={"value": "v1"}),
        "must be an absolute path",
    ),
    "an attempt that may take longer than the whole": (
        "HTTPRoute",
        lambda o: o["spec"]["rules"][0].update(timeouts={"request": "1s", "backendRequest": "2s"}),
        "backendRequest timeout cannot be longer",
    ),
    "a parent twice": (
        "HTTPRoute",
        lambda o: o["spec"]["parentRefs"].append(o["spec"]["parentRefs"][0]),
        "sectionName or port must be",
    ),
    "a listener twice": (
        "Gateway",
        lambda o: o["spec"]["listeners"].append(o["spec"]["listeners"][0]),
        "stands there twice",
    ),
}
"""Name: kind, change, and a pattern of what is said."""
