"""Which connections NetworkPolicies allow: a small evaluator of networking.k8s.io/v1.

Owns the rules of the API (a pod that some policy selects for a direction takes only what one of
them allows; both ends must allow) for what the manifests use. Pure.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod, or an address outside the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.9.9.9"

    @property
    def is_pod(self) -> bool:
        return bool(self.namespace)


def allowed(policies: list[Json], client: Peer, server: Peer, port: int, protocol: str) -> bool:
    """Whether `client` may open a connection to `server`'s port."""
    return _side(policies, "egress", client, server, port, protocol) and _side(
        policies, "ingress", server, client, port, protocol
    )


def _side(
    policies: list[Json], direction: str, own: Peer, other: Peer, port: int, protocol: str
) -> bool:
    if not own.is_pod:
        return True
    holding = [p for p in policies if _selects(p, own) and direction in _types(p)]
    if not holding:
        return True
    return any(
        _rule(rule, direction, policy["metadata"]["namespace"], other, port, protocol)
        for policy in holding
        for rule in policy["spec"].get(direction, [])
    )


def _types(policy: Json) -> set[str]:
    return {one.lower() for one in policy["spec"]["policyTypes"]}


def _selects(policy: Json, pod: Peer) -> bool:
    return policy["metadata"]["namespace"] == pod.namespace and matches(
        policy["spec"]["podSelector"], pod.labels
    )


def _rule(
    rule: Json, direction: str, namespace: str, other: Peer, port: int, protocol: str
) -> bool:
    peers = rule.get("from" if direction == "ingress" else "to")
    ports = rule.get("ports")
    return (not peers or any(_peer(one, namespace, other) for one in peers)) and (
        not ports or any(_port(one, port, protocol) for one in ports)
    )


def _peer(peer: Json, namespace: str, other: Peer) -> bool:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return ipaddress.ip_address(other.address) in network
    if not other.is_pod:
        return False
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": other.namespace}
        if not matches(peer["namespaceSelector"], labels):
            return False
    elif other.namespace != namespace:
        return False
    return matches(peer.get("podSelector", {}), other.labels)


def _port(one: Json, port: int, protocol: str) -> bool:
    first = one["port"]
    return one.get("protocol", "TCP") == protocol and first <= port <= one.get("endPort", first)


def matches(selector: Json, labels: Mapping[str, str]) -> bool:
    """A label selector of Kubernetes; one without conditions matches all."""
    return all(labels.get(n) == v for n, v in selector.get("matchLabels", {}).items()) and all(
        _expression(one, labels) for one in selector.get("matchExpressions", [])
    )


def _expression(one: Json, labels: Mapping[str, str]) -> bool:
    value = labels.get(one["key"])
    match one["operator"]:
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "In":
            return value in one["values"]
        case "NotIn":
            return value not in one["values"]
    raise ValueError(one["operator"])
