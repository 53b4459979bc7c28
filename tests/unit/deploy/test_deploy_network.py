"""NetworkPolicies allow every connection of a table, and no other."""

from typing import Any

import pytest

from aibrix_extproc.discovery.ports import split_host_port
from tests.manifests import deployed
from tests.manifests.network import Peer, allowed

Json = dict[str, Any]

RANKS = 16
PROCESSOR = Peer(deployed.NAMESPACE, {"app.kubernetes.io/name": deployed.NAME})
ENGINE = Peer(deployed.ENGINES_NAMESPACE, {"model.aibrix.ai/name": "llama-3-8b"})
ENVOY = Peer("envoy-gateway-system", {"app.kubernetes.io/name": "envoy"})
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Peer(address="10.0.0.1")
OUTSIDE = Peer(address="198.51.100.7")
STRANGER = Peer("default", {"app": "web"})
NEIGHBOUR = Peer(deployed.NAMESPACE, {"app.kubernetes.io/name": "aibrix-controller"})
BESIDE_ENGINES = Peer(deployed.ENGINES_NAMESPACE, {"app": "web"})
PEERS = {
    "processor": PROCESSOR,
    "engine": ENGINE,
    "Envoy": ENVOY,
    "Prometheus": PROMETHEUS,
    "DNS": DNS,
    "API server": API_SERVER,
    "outside": OUTSIDE,
    "stranger": STRANGER,
    "neighbour": NEIGHBOUR,
    "beside engines": BESIDE_ENGINES,
}
SETTINGS = deployed.settings(deployed.processor())
GRPC, ADMIN, PEER, DEBUG = (
    split_host_port(address)[1]
    for address in (
        SETTINGS.grpc_address,
        SETTINGS.admin_address,
        SETTINGS.peer_address,
        SETTINGS.debug_address,
    )
)
EVENTS = range(SETTINGS.kv_event_port, SETTINGS.kv_event_port + RANKS)
REPLAYS = range(SETTINGS.kv_replay_port, SETTINGS.kv_replay_port + RANKS)
API = (443, 6443)
TABLE: dict[tuple[str, str], set[int]] = {
    ("Envoy", "processor"): {GRPC},
    ("Prometheus", "processor"): {ADMIN},
    ("processor", "processor"): {PEER},
    ("processor", "engine"): {8000, *EVENTS, *REPLAYS},
    ("processor", "DNS"): {53},
    ("processor", "API server"): set(API),
    # The API server is no pod and cannot be named: only its ports are. The README says how to
    # write its addresses.
    ("processor", "outside"): set(API),
    ("Envoy", "engine"): {8000},
    ("Prometheus", "engine"): {8000},
}
"""Who may connect to whom, and to which ports: all that the processor and the engines need."""
PORTS = sorted(
    {22, 53, 80, *API, GRPC, ADMIN, PEER, DEBUG, 8000, 8001}
    | {port + step for port in (EVENTS.start, REPLAYS.start) for step in range(-1, RANKS + 1)}
)
HELD = ("processor", "engine")
"""Whose connections the policies are about; an engine's own connections are not held."""


def policies(*components: str) -> list[Json]:
    return [o for o in deployed.processor(*components) if o["kind"] == "NetworkPolicy"]


POLICIES = policies()
EVERYWHERE = policies("all-namespaces")


@pytest.mark.parametrize("server", HELD)
@pytest.mark.parametrize("client", PEERS)
def test_a_server_of_ours_takes_what_the_table_says(client: str, server: str) -> None:
    got = {port for port in PORTS if allowed(POLICIES, PEERS[client], PEERS[server], port, "TCP")}
    assert got == TABLE.get((client, server), set())


@pytest.mark.parametrize("server", PEERS)
def test_the_processor_goes_where_the_table_says(server: str) -> None:
    got = {port for port in PORTS if allowed(POLICIES, PROCESSOR, PEERS[server], port, "TCP")}
    # The API server's address is any address, so pods are reached at its ports as well: those
    # that let others in.
    assert got - set(API) == TABLE.get(("processor", server), set()) - set(API)


def test_dns_goes_by_udp_too() -> None:
    assert allowed(POLICIES, PROCESSOR, DNS, 53, "UDP")
    assert not allowed(POLICIES, PROCESSOR, STRANGER, 53, "UDP")


def test_the_debug_port_is_open_to_nobody() -> None:
    assert not any(allowed(POLICIES, peer, PROCESSOR, DEBUG, "TCP") for peer in PEERS.values())


def test_only_the_processor_reaches_events_and_replays() -> None:
    for port in (*EVENTS, *REPLAYS):
        reach = {n for n, p in PEERS.items() if allowed(POLICIES, p, ENGINE, port, "TCP")}
        assert reach == {"processor"}


def test_a_pod_that_calls_itself_the_processor_elsewhere_is_not_let_in() -> None:
    impostor = Peer("default", PROCESSOR.labels)
    assert not allowed(POLICIES, impostor, ENGINE, SETTINGS.kv_event_port, "TCP")
    assert not allowed(POLICIES, impostor, PROCESSOR, PEER, "TCP")


def test_engines_of_every_namespace_are_reached_where_all_are_watched() -> None:
    elsewhere = Peer("team-b", ENGINE.labels)
    assert not allowed(POLICIES, PROCESSOR, elsewhere, 5557, "TCP")
    assert allowed(EVERYWHERE, PROCESSOR, elsewhere, 5557, "TCP")
    assert not allowed(EVERYWHERE, PROCESSOR, Peer("team-b", {}), 5557, "TCP")


def test_every_port_of_every_example_engine_is_opened() -> None:
    for deployment in ("llama-3-8b", "fake-engines"):
        ports = deployed.container(deployed.everything(), deployment)["ports"]
        for port in ports:
            assert allowed(POLICIES, PROCESSOR, ENGINE, port["containerPort"], "TCP")


def test_without_policies_everything_is_allowed() -> None:
    assert allowed([], STRANGER, ENGINE, 5557, "TCP")
