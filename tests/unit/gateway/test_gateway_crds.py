"""The stand-in for an API server with the CRDs: it reads every rule, and its rules fire."""

import re
from typing import Any

import pytest

from tests.manifests import crds
from tests.manifests.crds import NEWEST, OLDEST, RELEASES
from tests.manifests.gateway_faults import REFUSED, first_ext_proc, shipped, spoilt

Json = dict[str, Any]

POOL = "inference-extension 1.5.0"


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


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_manifest_is_refused_and_the_fault_is_named(name: str, release: str) -> None:
    kind, _, reason = REFUSED[name]
    assert crds.faults(shipped(kind), release) == []
    obj = spoilt(name)
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
