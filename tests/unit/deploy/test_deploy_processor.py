"""What the processor's manifests mean: ports, probes, variables, times, memory and selectors."""

import re
import subprocess
from typing import Any

import aiohttp
import pytest
import yaml

from aibrix_extproc import cli
from aibrix_extproc.admin.server import AdminServer
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings, variables, warnings
from aibrix_extproc.snapshot.peer import TIMEOUT_S as PEER_TIMEOUT_S
from tests.manifests import deployed, kube_schemas
from tests.manifests.network import matches
from tests.unit.admin.admin_rig import World

Json = dict[str, Any]

OBJECTS = deployed.processor()
SETTINGS = deployed.settings(OBJECTS)
SAVES_S = 5
"""Two saves of a large index and the end of the process; measured: 0.5 s with a million blocks."""
PROCESS_BYTES = 109_000_000
"""docs/operations.md, "Sizing": a process with nothing to do."""
HELD_BYTES = 700_000_000
"""The same: what caches, predictions and bodies may take at the defaults."""
SAVED_SHARE = 16 / 38
"""Bytes of a placement in a snapshot, and in the index (docs/warm-restart.md)."""


def size_bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert match, quantity
    return int(match[1]) * {"Mi": 1024**2, "Gi": 1024**3}[match[2]]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def ports() -> dict[str, int]:
    return {p["name"]: p["containerPort"] for p in deployed.container(OBJECTS)["ports"]}


# -- variables ------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["", *deployed.COMPONENTS])
def test_every_variable_exists_and_the_settings_are_accepted(component: str) -> None:
    objects = deployed.processor(component) if component else OBJECTS
    given = deployed.environment(objects)
    assert given.keys() <= variables().keys()
    assert warnings(given) == []
    deployed.settings(objects)


def test_event_sync_is_on_with_what_it_needs() -> None:
    assert SETTINGS.kv_event_sync
    assert SETTINGS.use_remote_tokenizer
    assert SETTINGS.endpoints_file == ""


def test_tls_and_curve_files_lie_where_their_secrets_are_mounted() -> None:
    objects = deployed.processor("tls", "curve")
    mounts = {m["name"]: m["mountPath"] for m in deployed.container(objects)["volumeMounts"]}
    settings = deployed.settings(objects)
    for name, files in (
        ("tls", (settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca)),
        ("curve", (settings.kv_curve_server_key_file, settings.kv_curve_client_key_file)),
    ):
        assert {file.rpartition("/")[0] for file in files} == {mounts[name]}
    volumes = {v["name"]: v for v in deployed.pod_spec(objects)["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == "aibrix-extproc-tls"
    assert volumes["curve"]["secret"]["secretName"] == "aibrix-extproc-curve"


# -- ports and probes -----------------------------------------------------------------------


def test_the_container_names_the_ports_that_the_process_opens() -> None:
    assert ports() == {
        "grpc": port_of(SETTINGS.grpc_address),
        "admin": port_of(SETTINGS.admin_address),
        "peers": port_of(SETTINGS.peer_address),
    }


def test_the_debug_port_stays_on_the_pods_loopback() -> None:
    assert SETTINGS.debug_address == "127.0.0.1:8081"


@pytest.mark.parametrize(
    ("probe", "path"),
    [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")],
)
async def test_probes_ask_pages_that_the_admin_port_has(probe: str, path: str) -> None:
    asked = deployed.container(OBJECTS)[probe]["httpGet"]
    assert asked == {"path": path, "port": "admin"}
    world = World()
    server = AdminServer(
        Settings(admin_address="127.0.0.1:0"),
        Metrics(),
        type("Names", (), {"model_names": lambda self: ()})(),
        world,
        lambda: world.conditions,
        "core",
    )
    await server.start()
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}{asked['path']}"
        async with http.get(url) as reply:
            assert reply.status == 200
        world.conditions["pods_listed"] = False
        async with http.get(url) as reply:
            assert reply.status == (503 if path == "/readyz" else 200)
    await server.close()


def test_a_start_may_take_as_long_as_a_slow_replica_and_a_slow_node() -> None:
    probe = deployed.container(OBJECTS)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > PEER_TIMEOUT_S + 20


def test_liveness_leaves_the_watchdog_the_first_word() -> None:
    probe = deployed.container(OBJECTS)["livenessProbe"]
    stall_s = probe["periodSeconds"] * (probe["failureThreshold"] - 1) + probe["timeoutSeconds"]
    assert stall_s > SETTINGS.watchdog_timeout_s


# -- start and end --------------------------------------------------------------------------


def test_the_command_is_one_that_the_command_line_takes() -> None:
    args = cli._parser().parse_args(deployed.container(OBJECTS)["args"])
    assert args.command == "serve"


def test_a_start_takes_over_from_a_ready_replica_by_the_headless_service() -> None:
    name, url = deployed.container(OBJECTS)["args"][-2:]
    assert name == "--from-peer"
    host, _, port = url.removeprefix("http://").partition(":")
    service = deployed.find(OBJECTS, "Service", host)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is False
    assert host in SETTINGS.debug_hosts
    assert int(port) == port_of(SETTINGS.peer_address)
    assert {p["name"]: p["port"] for p in service["spec"]["ports"]}["peers"] == int(port)


def test_the_grace_period_holds_all_that_comes_after_sigterm() -> None:
    needed_s = SETTINGS.pre_stop_delay_s + SETTINGS.decision_timeout_s + SAVES_S
    assert deployed.pod_spec(OBJECTS)["terminationGracePeriodSeconds"] > needed_s


def test_a_rollout_never_has_fewer_replicas_than_wanted() -> None:
    spec = deployed.find(OBJECTS, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_snapshot_lies_on_the_only_place_that_can_be_written() -> None:
    (mount,) = deployed.container(OBJECTS)["volumeMounts"]
    (volume,) = deployed.pod_spec(OBJECTS)["volumes"]
    assert mount["name"] == volume["name"]
    assert SETTINGS.kv_snapshot_path.startswith(mount["mountPath"] + "/")
    three = 3 * SETTINGS.kv_index_max_bytes * SAVED_SHARE
    assert size_bytes(volume["emptyDir"]["sizeLimit"]) > three


# -- limits and rights ----------------------------------------------------------------------


def test_a_full_index_and_full_caches_fit_the_memory_limit() -> None:
    limit = size_bytes(deployed.container(OBJECTS)["resources"]["limits"]["memory"])
    assert limit > 1.4 * SETTINGS.kv_index_max_bytes + PROCESS_BYTES + HELD_BYTES


def test_no_limit_of_cpu_throttles_the_event_loop() -> None:
    resources = deployed.container(OBJECTS)["resources"]
    assert "cpu" in resources["requests"]
    assert "cpu" not in resources["limits"]


@pytest.mark.parametrize("deployment", ["aibrix-extproc", "fake-engines"])
def test_our_containers_may_do_nothing_that_they_need_not(deployment: str) -> None:
    objects = deployed.everything()
    pod = deployed.pod_spec(objects, deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert deployed.container(objects, deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_user_is_the_one_of_the_image() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", (deployed.ROOT / "Dockerfile").read_text(), re.M)
    assert user is not None
    context = deployed.pod_spec(OBJECTS)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))


# -- what points at the pods ----------------------------------------------------------------


def test_every_selector_finds_the_processors_pods_and_only_them() -> None:
    objects = deployed.everything()
    labels = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"]
        for o in objects
        if o["kind"] == "Deployment"
    }
    selectors = [
        {"matchLabels": o["spec"]["selector"]} if o["kind"] == "Service" else o["spec"]["selector"]
        for o in objects
        if o["metadata"]["name"].startswith(deployed.NAME)
        and o["metadata"].get("namespace") == deployed.NAMESPACE
        and o["kind"] in {"Service", "Deployment", "PodDisruptionBudget", "PodMonitor"}
    ]
    policy = deployed.find(objects, "NetworkPolicy")
    spread = deployed.pod_spec(objects)["topologySpreadConstraints"]
    selectors += [policy["spec"]["podSelector"], *(one["labelSelector"] for one in spread)]
    assert len(selectors) == 8
    for selector in selectors:
        assert {n for n, held in labels.items() if matches(selector, held)} == {deployed.NAME}


def test_ports_of_services_and_monitors_are_ports_of_the_container() -> None:
    objects = deployed.everything()
    for obj in objects:
        if obj["kind"] == "Service":
            for port in obj["spec"]["ports"]:
                assert ports()[port["targetPort"]] == port["port"]
    (endpoint,) = deployed.find(objects, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert ports()[endpoint["port"]] == port_of(SETTINGS.admin_address)
    assert endpoint["path"] == "/metrics"
    assert endpoint["honorLabels"], "or the label `pod` of an engine gives way to the processor's"
    (endpoint,) = deployed.find(objects, "PodMonitor", "aibrix-extproc-engines")["spec"][
        "podMetricsEndpoints"
    ]
    for engines in ("llama-3-8b", "fake-engines"):
        named = {
            p["name"]: p["containerPort"] for p in deployed.container(objects, engines)["ports"]
        }
        assert named[endpoint["port"]] == 8000


def test_monitors_name_the_jobs_that_the_alert_rules_ask_for() -> None:
    """By a relabeling: names of pods and of an installation are anybody's choice."""
    objects = deployed.processor("monitoring")
    given = set()
    for name in ("aibrix-extproc", "aibrix-extproc-engines"):
        spec = deployed.find(objects, "PodMonitor", name)["spec"]
        assert "jobLabel" not in spec
        (endpoint,) = spec["podMetricsEndpoints"]
        (rule,) = endpoint["relabelings"]
        assert rule["targetLabel"] == "job"
        given.add(rule["replacement"])
    rules = (deployed.ROOT / "deploy" / "monitoring" / "rules.yaml").read_text()
    assert given == set(re.findall(r'job="([^"]+)"', rules))


def test_the_alert_rules_become_a_prometheus_rule() -> None:
    command = ["make", "--silent", "kube-rules"]
    made = subprocess.run(command, cwd=deployed.ROOT, capture_output=True, text=True, check=True)
    rule = yaml.safe_load(made.stdout)
    assert kube_schemas.faults(rule) == []
    assert (rule["kind"], rule["metadata"]["namespace"]) == ("PrometheusRule", deployed.NAMESPACE)
    file = deployed.ROOT / "deploy" / "monitoring" / "rules.yaml"
    assert rule["spec"] == yaml.safe_load(file.read_text())


def test_cleartext_http2_is_named_only_without_tls() -> None:
    for components, protocol in ((), "kubernetes.io/h2c"), (("tls",), None):
        for name in ("aibrix-extproc", "aibrix-extproc-headless"):
            service = deployed.find(deployed.processor(*components), "Service", name)
            (grpc,) = (p for p in service["spec"]["ports"] if p["name"] == "grpc")
            assert grpc.get("appProtocol") == protocol


def test_the_autoscaler_follows_a_metric_that_exists_and_stays_low() -> None:
    objects = deployed.processor("autoscaling")
    spec = deployed.find(objects, "HorizontalPodAutoscaler")["spec"]
    (metric,) = spec["metrics"]
    exported = {family.name for family in Metrics().registry.collect()}
    assert metric["pods"]["metric"]["name"] in exported
    assert metric["type"] == "Pods"
    assert 2 == spec["minReplicas"] < spec["maxReplicas"] <= 4
    assert int(metric["pods"]["target"]["averageValue"]) < Settings().max_streams
    deployment = deployed.find(objects, "Deployment")
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]


def test_a_disruption_takes_one_replica_at_a_time() -> None:
    assert deployed.find(OBJECTS, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
