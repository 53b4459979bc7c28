"""The stand-in for an API server with the CRDs: it reads every rule, and its rules fire."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests import crds
from tests.manifests.crds import NEWEST, OLDEST, RELEASES

Json = dict[str, Any]

BASE = Path(__file__).parents[3] / "envoy" / "gateway" / "base"
POOL = "inference-extension 1.5.0"


def shipped(kind: str, name: str | None = None) -> Json:
    for path in BASE.glob("*.yaml"):
        for obj in yaml.safe_load_all(path.read_text()):
            if obj["kind"] == kind and name in (None, obj["metadata"]["name"]):
                return copy.deepcopy(obj)
    raise LookupError(kind)


def pool() -> Json:
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": "engines"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "aibrix-extproc", "port": {"number": 50052}},
        },
    }


@pytest.mark.parametrize("release", [*RELEASES, POOL, "inference-extension 1.0.0"])
def test_every_rule_of_the_crds_can_be_run_but_those_about_changes(release: str) -> None:
    rules = crds.rules(release)
    assert rules
    for rule in rules:
        crds.compiled(rule)
    not_run = {rule: kinds for rule, kinds in rules.items() if crds.is_transition(rule)}
    gateway_class = {"self == oldSelf": {"gateway.networking.k8s.io/v1 GatewayClass"}}
    # The list must not grow: what is not run here only a real API server checks.
    assert not_run == (gateway_class if release in RELEASES else {})


def test_a_rule_that_kubernetes_cannot_have_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="undeclared"):
        crds.compiled("self.a.nonsense()")


# -- what is refused ---------------------------------------------------------------------------


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


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_manifest_is_refused_and_the_fault_is_named(name: str, release: str) -> None:
    kind, spoil, reason = REFUSED[name]
    obj = shipped(kind)
    assert crds.faults(obj, release) == []
    spoil(obj)
    faults = crds.faults(obj, release)
    assert faults
    assert re.search(reason, " ".join(faults))
    assert faults[0].startswith(f"{obj['apiVersion']} {kind} {obj['metadata']['name']}: $")


def test_a_pool_needs_the_port_of_its_picker() -> None:
    assert crds.faults(pool(), POOL) == []
    spoilt = pool()
    del spoilt["spec"]["endpointPickerRef"]["port"]
    assert "port is required when kind is 'Service'" in crds.faults(spoilt, POOL)[0]


def test_defaults_count_before_rules_do() -> None:
    """`kind` of a backend is `Service` by default, which a rule asks for."""
    obj = shipped("EnvoyExtensionPolicy")
    assert "kind" not in first_ext_proc(obj)["backendRefs"][0]
    filled = crds.with_defaults(obj)
    assert first_ext_proc(filled)["backendRefs"][0]["kind"] == "Service"
    assert "kind" not in first_ext_proc(obj)["backendRefs"][0]


def test_names_that_cel_reserves_are_read_as_kubernetes_writes_them() -> None:
    """Two parents that differ by `namespace` alone: the rule says `__namespace__`."""
    obj = shipped("HTTPRoute")
    parents = obj["spec"]["parentRefs"]
    obj["spec"]["parentRefs"] = [parent | {"namespace": n} for n in "ab" for parent in parents]
    assert crds.faults(obj) == []
    obj["spec"]["parentRefs"] = [parent | {"namespace": "a"} for _ in "ab" for parent in parents]
    assert crds.faults(obj) != []


def test_what_only_the_newest_release_has_is_refused_by_the_oldest() -> None:
    obj = shipped("BackendTrafficPolicy")
    obj["spec"]["timeout"]["http"]["streamIdleTimeout"] = "1s"
    assert crds.faults(obj, NEWEST) == []
    assert "'streamIdleTimeout' was unexpected" in crds.faults(obj, OLDEST)[0]


def test_a_kind_without_a_schema_and_a_manifest_without_a_name_are_faults() -> None:
    assert "has no schema" in crds.faults({"apiVersion": "v1", "kind": "Pod"})[0]
    obj = shipped("Gateway")
    del obj["metadata"]["name"]
    assert "no name" in crds.faults(obj)[0]
