"""The compose file and the Dockerfile: valid, consistent, and every command runs as it stands.

Docker is not needed: each container becomes a process on an address of its own in 127.0.0.0/8.
`Container.translate` is all that differs from the file.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from aibrix_extproc.demo import envoy_config
from aibrix_extproc.demo.processes import Process, Processes
from aibrix_extproc.discovery.endpoints_format import parse_pods
from aibrix_extproc.settings import Settings, variables
from tests.envoy_binary import envoy_path
from tests.support import data_path, eventually

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


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
        assert test[:2] == ["CMD", "python"]
        command = [sys.executable, *(self.translate(word) for word in test[2:])]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    """The files of `envoy/`, each translated for the service that reads it."""
    for name, reader in (("override-host.yaml", "envoy"), ("endpoints.yaml", "processor")):
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


def test_envoy_and_the_processor_know_the_addresses_of_the_compose_file() -> None:
    engines = {f"{address(name)}:8000" for name in SERVICES if name.startswith("engine-")}
    pods = parse_pods((ROOT / "envoy" / "endpoints.yaml").read_text(), 5557, 5558).pods
    assert {pod.address for pod in pods} == engines
    assert all(pod.kv_events for pod in pods)

    config = envoy_config.load(ROOT / "envoy" / "override-host.yaml")
    assert cluster_addresses(config, "engines") == engines
    assert cluster_addresses(config, "ext_proc") == {f"{address('processor')}:50052"}
    original = envoy_config.load(ROOT / "envoy" / "original-dst.yaml")
    assert cluster_addresses(original, "ext_proc") == {f"{address('processor')}:50052"}


def cluster_addresses(config: envoy_config.Config, name: str) -> set[str]:
    endpoints = envoy_config.cluster(config, name)["load_assignment"]["endpoints"]
    sockets = [
        endpoint["endpoint"]["address"]["socket_address"]
        for group in endpoints
        for endpoint in group["lb_endpoints"]
    ]
    return {f"{socket['address']}:{socket['port_value']}" for socket in sockets}


def test_envoy_mounts_the_shipped_files() -> None:
    for service in ("envoy", "processor"):
        source = SERVICES[service]["volumes"][0].split(":")[0]
        assert (ROOT / source).samefile(ROOT / "envoy")
    assert (ROOT / "envoy" / "override-host.yaml").exists()


def test_every_variable_of_the_processor_exists() -> None:
    assert set(SERVICES["processor"]["environment"]) <= set(variables())


def test_the_processor_may_drain_before_it_is_killed() -> None:
    grace_s = int(SERVICES["processor"]["stop_grace_period"].rstrip("s"))
    assert grace_s > Settings().pre_stop_delay_s + Settings().decision_timeout_s


def test_published_ports_are_those_of_the_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_starts_the_command_that_the_package_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entrypoint = re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert entrypoint is not None
    assert json.loads(entrypoint[1]) == list(project["scripts"])


def test_the_image_exposes_the_default_ports() -> None:
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed is not None
    settings = Settings()
    ports = [one.rpartition(":")[2] for one in (settings.grpc_address, settings.admin_address)]
    assert exposed[1].split() == ports


def test_the_image_is_built_of_files_that_exist_and_are_sent() -> None:
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copies for source in line.split()}
    assert sources
    assert sources <= sent
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_does_not_run_as_root() -> None:
    assert re.search(r"^USER 65532:65532$", DOCKERFILE, re.MULTILINE)


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
        assert re.search(r"errors\s*│\s*0 ", result.stdout), result.stdout


def running(process: Process) -> bool:
    process.check()
    return True
