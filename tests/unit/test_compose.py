"""The compose file: valid, consistent with envoy/, and every command runs as it stands.

Docker is not needed: each container becomes a process on an address of its own in 127.0.0.0/8.
`Container.translate` is all that differs from the file. With Docker: `make compose-test`.
"""

import ipaddress
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from aibrix_extproc import cli
from aibrix_extproc.discovery.endpoints_format import parse_pods
from aibrix_extproc.settings import Settings, variables
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.processes import Process, Processes
from tests.envoy_binary import envoy_path
from tests.support import data_path, eventually

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROCESSORS = ("processor-1", "processor-2")
SIZES = {"m": 1024**2, "g": 1024**3}


def address(service: str) -> str:
    networks = SERVICES[service]["networks"]
    return str(networks["gateway"]["ipv4_address"]) if isinstance(networks, dict) else "172.30.87.3"


@dataclass
class Container:
    """One service as a process of this machine."""

    name: str
    mounts: Path
    """Stands for the mounted folder."""

    def translate(self, text: str) -> str:
        """What the text means here: its own addresses, the network's, and the mounted folder."""
        own = address(self.name)
        text = text.replace("0.0.0.0", own).replace("127.0.0.1", own)
        for service in SERVICES:
            text = text.replace(f"http://{service}:", f"http://{address(service)}:")
        return text.replace("172.30.87.", "127.30.87.").replace(
            "/etc/aibrix-extproc/", f"{self.mounts}/"
        )

    @property
    def command(self) -> list[str]:
        service = SERVICES[self.name]
        words = [self.translate(word) for word in service["command"]]
        if service["image"].startswith("envoyproxy/"):
            return [str(envoy_path()), *words]  # the image puts `envoy` before options
        return [sys.executable, "-m", "aibrix_extproc.cli", *words]

    @property
    def environment(self) -> dict[str, str]:
        given = SERVICES[self.name].get("environment", {})
        return {name: self.translate(str(value)) for name, value in given.items()}

    def healthy(self) -> bool:
        """What its health check says; a service without one is healthy."""
        test = SERVICES[self.name].get("healthcheck", {}).get("test")
        if test is None:
            return True
        assert test[:2] == ["CMD", "python3"]
        command = [sys.executable, *(self.translate(word) for word in test[2:])]
        environment = os.environ | self.environment
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        return done.returncode == 0


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """The files of `envoy/`, each translated for the service that reads it."""
    for name, reader in (("override-host.yaml", "envoy"), ("endpoints.yaml", "processor-1")):
        text = (ROOT / "envoy" / name).read_text()
        (tmp_path / name).write_text(Container(reader, tmp_path).translate(text))
    return tmp_path


def start_order() -> list[str]:
    """The services without a profile, each after those that it depends on."""
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in SERVICES[name].get("depends_on", {}):
            visit(needed)
        if name not in order:
            order.append(name)

    for name, service in SERVICES.items():
        if "profiles" not in service:
            visit(name)
    return order


def test_the_compose_file_fits_its_schema() -> None:
    schema = json.loads(data_path("schemas/compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_the_schema_refuses_what_is_no_compose_file() -> None:
    schema = json.loads(data_path("schemas/compose-spec.json").read_text())
    broken = {**COMPOSE, "services": {"envoy": {"imagge": "x"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(broken)


def test_docker_compose_1_reads_it_too() -> None:
    """Debian's; it refuses `name` at the top."""
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"services", "networks"}


def test_envoy_and_the_processors_know_the_addresses_of_the_compose_file() -> None:
    engines = {f"{address(name)}:8000" for name in SERVICES if name.startswith("engine-")}
    assert len(engines) == 4
    pods = parse_pods((ROOT / "envoy" / "endpoints.yaml").read_text(), 5557, 5558).pods
    assert {pod.address for pod in pods} == engines
    assert {pod.name for pod in pods} == {name for name in SERVICES if name.startswith("engine-")}
    assert all(pod.kv_events for pod in pods)

    processors = {f"{address(name)}:50052" for name in PROCESSORS}
    config = envoy_config.load(ROOT / "envoy" / "override-host.yaml")
    assert cluster_addresses(config, "engines") == engines
    assert cluster_addresses(config, "ext_proc") == processors
    original = envoy_config.load(ROOT / "envoy" / "original-dst.yaml")
    assert cluster_addresses(original, "ext_proc") == processors


def test_fixed_addresses_are_in_the_network_and_not_given_to_others() -> None:
    network = COMPOSE["networks"]["gateway"]["ipam"]["config"][0]
    fixed = [
        ipaddress.ip_address(service["networks"]["gateway"]["ipv4_address"])
        for service in SERVICES.values()
        if isinstance(service["networks"], dict)
    ]
    assert len(set(fixed)) == len(fixed)
    assert all(one in ipaddress.ip_network(network["subnet"]) for one in fixed)
    assert not any(one in ipaddress.ip_network(network["ip_range"]) for one in fixed)


def cluster_addresses(config: envoy_config.Config, name: str) -> set[str]:
    endpoints = envoy_config.cluster(config, name)["load_assignment"]["endpoints"]
    sockets = [
        endpoint["endpoint"]["address"]["socket_address"]
        for group in endpoints
        for endpoint in group["lb_endpoints"]
    ]
    return {f"{socket['address']}:{socket['port_value']}" for socket in sockets}


def test_envoy_mounts_the_shipped_files() -> None:
    for service in ("envoy", *PROCESSORS):
        source = SERVICES[service]["volumes"][0].split(":")[0]
        assert (ROOT / source).samefile(ROOT / "envoy")
    assert (ROOT / "envoy" / "override-host.yaml").exists()


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_variable_of_a_processor_exists_and_can_be_used(name: str) -> None:
    given = SERVICES[name]["environment"]
    assert set(given) <= set(variables())
    settings = Settings.from_environment(given)
    assert settings.kv_event_sync
    assert settings.tokenizer_endpoint == "http://tokenizer:8000"
    memory = settings.kv_index_max_bytes + settings.max_inflight_bytes
    limit = str(SERVICES[name]["mem_limit"])
    assert memory < int(limit[:-1]) * SIZES[limit[-1]] / 2, "no room for the process itself"


def test_the_replicas_differ_by_address_and_published_ports_alone() -> None:
    first, second = (
        {key: value for key, value in SERVICES[name].items() if key not in ("ports", "networks")}
        for name in PROCESSORS
    )
    assert first == second


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_may_drain_before_it_is_killed(name: str) -> None:
    grace_s = int(SERVICES[name]["stop_grace_period"].rstrip("s"))
    assert grace_s > Settings().pre_stop_delay_s + Settings().decision_timeout_s


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_may_write_its_files_gain_rights_or_take_all_memory(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    # What is not our image, which has a user of its own.
    assert service["image"] == "aibrix-extproc" or not service["user"].startswith("0")


@pytest.mark.parametrize("name", [n for n in SERVICES if SERVICES[n]["image"] == "aibrix-extproc"])
def test_every_command_parses(name: str) -> None:
    args = cli._parser().parse_args(SERVICES[name]["command"])
    assert callable(args.run)


def test_the_profiles_are_those_of_the_readme() -> None:
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert {name: given for name, given in profiles.items() if given} == {
        "loadtest": ["loadtest"],
        "prometheus": ["monitoring"],
    }


def test_published_ports_are_those_of_the_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_envoy_accepts_the_command_of_its_service(mounts: Path) -> None:
    command = [*Container("envoy", mounts).command, "--mode", "validate"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs the addresses 127.30.87.0/24")
def test_every_service_runs_as_it_stands(mounts: Path) -> None:
    with Processes() as processes:
        for name in start_order():
            container = Container(name, mounts)
            process = processes.spawn(name, container.command, container.environment)
            eventually(lambda c=container, p=process: running(p) and c.healthy(), timeout_s=30)
        load = Container("loadtest", mounts)
        result = subprocess.run(
            load.command, capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "240 of 240 ended, 0 open, 0 errors" in result.stderr


def running(process: Process) -> bool:
    process.check()
    return True
