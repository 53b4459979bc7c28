"""The shipped compose file as a project that runs, in a copy of the files that it mounts.

Owns the copy, the override (names of images alone), services that start and stop, and the pages
that they publish on the loopback. Whatever happens inside `running`, all of it is removed.
"""

import json
import os
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.compose import images
from tests.compose.docker_engine import Docker, Failed

NAME: Final = "aibrix-compose-test"
COMPOSE_FILE: Final = images.ROOT / "docker-compose.yaml"
SERVICES: Final[dict[str, dict[str, Any]]] = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
PROCESSORS: Final = ("processor-1", "processor-2")
ENGINES: Final = tuple(name for name in SERVICES if name.startswith("engine-"))
GATEWAY: Final = "http://127.0.0.1:10000"
PROMETHEUS: Final = "http://127.0.0.1:9090"
_IMAGES: Final = {"envoy": images.ENVOY, "prometheus": images.PROMETHEUS}
_PROFILES: Final = ("--profile", "loadtest", "--profile", "monitoring")


@dataclass(frozen=True)
class Project:
    """The project, from `running`."""

    docker: Docker
    folder: Path

    def compose(self, *arguments: str, timeout_s: float = 120.0) -> str:
        """`docker compose …` of this project: its output. Raises Failed."""
        return self.docker.run(
            self._command(*arguments), timeout_s=timeout_s, cwd=self.folder
        ).stdout

    def _command(self, *arguments: str) -> list[str]:
        files = ["--file", "docker-compose.yaml", "--file", "images.yaml"]
        return [*self.docker.compose_command, "--project-name", NAME, *files, *arguments]

    def container(self, service: str) -> str:
        """The id of a service's container. Raises Failed where it has none."""
        command = ["ps", "--all", "--quiet", "--filter"]
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={NAME}"
        found = self.docker(*command, label, "--filter", project).split()
        if len(found) != 1:
            raise Failed(f"{service} has {len(found)} containers")
        return found[0]

    def state(self, service: str) -> dict[str, Any]:
        """What Docker says of a service's container."""
        return self.docker.inspect("inspect", self.container(service))

    def healthy(self, service: str) -> bool:
        """Whether its health check says so."""
        state: Mapping[str, Any] = self.state(service)["State"]
        return bool(state["Running"] and state.get("Health", {}).get("Status") == "healthy")

    def kill(self, service: str) -> None:
        """SIGKILL, and Docker does not start it again."""
        self.docker("kill", self.container(service))

    def inside(self, service: str, *command: str) -> str:
        """Run a command in a container: its output. Raises Failed."""
        return self.docker("exec", self.container(service), *command)

    def endpoints(self, names: tuple[str, ...]) -> None:
        """Write the endpoints file with these engines alone."""
        path = self.folder / "envoy" / "endpoints.yaml"
        pods = yaml.safe_load((images.ROOT / "envoy" / "endpoints.yaml").read_text())["pods"]
        kept = [pod for pod in pods if pod["name"] in names]
        partial = path.with_suffix(".partial")
        partial.write_text(yaml.safe_dump({"pods": kept}))
        partial.rename(path)

    def page(self, processor: str, page: str, port: int = 8080) -> Any:
        """A JSON page of a processor, by the port that it publishes; None where it is not there."""
        return get_json(f"{self.published(processor, port)}{page}")

    def published(self, service: str, port: int) -> str:
        """The URL that a port of a service is published at."""
        for one in SERVICES[service]["ports"]:
            host, outer, inner = one.split(":")
            if inner == str(port):
                return f"http://{host}:{outer}"
        raise Failed(f"{service} does not publish {port}")

    def states(self, processor: str) -> dict[str, str]:
        """Pod → the state of its source, as this processor sees it."""
        views = self.page(processor, "/debug/sources", 8081) or []
        return {view["pod"].partition("/")[2]: view["state"] for view in views}

    def sequence(self, processor: str, engine: str) -> int:
        """Number of the last batch of an engine that a processor has applied; -1: none."""
        views = self.page(processor, "/debug/sources", 8081) or []
        numbers = [view["sequence"] for view in views if view["pod"].endswith(f"/{engine}")]
        return numbers[0] if numbers and numbers[0] is not None else -1

    def exact(self, *engines: str) -> bool:
        """Whether both processors are ready and EXACT on just these engines."""
        wanted = dict.fromkeys(engines or ENGINES, "EXACT")
        return all(
            self.states(name) == wanted and (self.page(name, "/readyz") or {}).get("ready")
            for name in PROCESSORS
        )

    def save_logs(self, folder: Path) -> None:
        """The log of every container."""
        folder.mkdir(exist_ok=True)
        for name in SERVICES:
            done = self.docker.run(
                self._command("logs", "--no-color", name), check=False, cwd=self.folder
            )
            if done.stdout.strip():
                (folder / f"{name}.log").write_text(done.stdout + (done.stderr or ""))


def get_json(url: str) -> Any:
    """What a page answers, whatever its status, as data; None where nobody does, or no JSON."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        content = error.read()
    except (OSError, ValueError):
        return None
    try:
        return json.loads(content)
    except ValueError:
        return None


@contextmanager
def running(docker: Docker, work: Path) -> Iterator[Project]:
    """A project to be started; its containers, network and files are gone at the end."""
    _check_ports()
    folder = Path(tempfile.mkdtemp(prefix="aibrix-compose-"))
    project = Project(docker, folder)
    try:
        _copy(folder)
        project.compose("config", "--quiet")
        yield project
    except BaseException:
        project.save_logs(work / "logs")
        print(f"the containers' logs: {work / 'logs'}", flush=True)
        raise
    finally:
        project.compose(*_PROFILES, "down", "--volumes", "--remove-orphans", "--timeout", "5")
        shutil.rmtree(folder)


def leftovers(docker: Docker) -> list[str]:
    """Containers and networks of the project that are still there."""
    mine = f"--filter=label=com.docker.compose.project={NAME}"
    return (
        docker("ps", "--all", "--quiet", mine).split()
        + docker("network", "ls", "--quiet", mine).split()
    )


def _copy(folder: Path) -> None:
    """The compose file and what it mounts, readable by the users of the containers."""
    shutil.copy(COMPOSE_FILE, folder)
    shutil.copytree(images.ROOT / "envoy", folder / "envoy")
    shutil.copytree(images.ROOT / "deploy" / "monitoring", folder / "deploy" / "monitoring")
    services = {name: {"image": _IMAGES.get(name, images.IMAGE)} for name in SERVICES}
    (folder / "images.yaml").write_text(yaml.safe_dump({"services": services}))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _check_ports() -> None:
    """A port that somebody else has would fail half-way, with a worse message."""
    for service in SERVICES.values():
        for one in service.get("ports", ()):
            host, port, _ = one.split(":")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, int(port)))
                except OSError as error:
                    raise Failed(f"port {host}:{port}, which the file publishes: {error}") from None


def keep() -> bool:
    """Whether images stay for the next run."""
    return bool(os.environ.get("COMPOSE_TEST_KEEP"))
