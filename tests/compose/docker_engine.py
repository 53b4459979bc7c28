"""A Docker engine and its command lines, or why there is none.

Owns finding `docker`, Compose (the plugin, or `docker-compose` 1.29) and a daemon; starts a private
daemon, and ends it, where none answers and this process may. Knows no image and no project.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NEEDED: Final = (
    "apt-get update && apt-get install --no-install-recommends "
    "docker.io docker-compose iptables debootstrap"
)
"""On Debian."""
DAEMON_STARTS_S: Final = 30.0
_BRIDGE: Final = Path("/sys/class/net/docker0")
DAEMON_OPTIONS: Final = (
    (),
    ("--storage-driver=vfs",),
    ("--storage-driver=vfs", "--iptables=false", "--ip6tables=false"),
)
"""Tried in this order: what a daemon likes, then for a kernel without overlay, or without NAT."""


class CannotRun(Exception):
    """Docker cannot run here: the test is skipped, and this says what is needed."""


class Failed(Exception):
    """Something is not as it should be."""


@dataclass(frozen=True)
class Docker:
    """The command lines, with the environment that reaches the daemon."""

    environment: Mapping[str, str]
    compose_command: tuple[str, ...]
    started: bool
    """Whether the daemon is ours."""

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float = 60.0,
        check: bool = True,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """One command. Raises Failed with the end of its output, unless `check` is false."""
        try:
            done = subprocess.run(
                command,
                env=dict(self.environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if log else subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(command)}: no end within {timeout_s:.0f} s") from error
        if log is not None:
            log.write_text(done.stdout)
        if check and done.returncode != 0:
            said = f"{done.stdout}\n{done.stderr or ''}".strip().splitlines()[-25:]
            text = "\n    ".join(said)
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n    {text}")
        return done

    def __call__(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """`docker …`: its output, stripped. Raises Failed."""
        return self.run(["docker", *arguments], timeout_s=timeout_s).stdout.strip()

    def inspect(self, *arguments: str) -> dict[str, Any]:
        """`docker … inspect NAME`, of one thing."""
        found: list[dict[str, Any]] = json.loads(self(*arguments))
        return found[0]

    def versions(self) -> dict[str, str]:
        """Of the engine, its storage driver and Compose."""
        compose = self.run([*self.compose_command, "version", "--short"]).stdout.strip()
        return {
            "Docker": self("version", "--format", "{{.Server.Version}}"),
            "storage driver": self("info", "--format", "{{.Driver}}"),
            "Compose": f"{compose} ({' '.join(self.compose_command)})",
            "kernel": os.uname().release,
        }


@contextmanager
def engine(work: Path) -> Iterator[Docker]:
    """A Docker that answers; a daemon that had to be started is ended. Raises CannotRun."""
    if sys.platform != "linux":
        raise CannotRun("it needs Linux")
    if shutil.which("docker") is None:
        raise CannotRun(f"there is no `docker`: {NEEDED}")
    compose = _compose()
    if _answers(os.environ):
        yield Docker(dict(os.environ), compose, started=False)
        return
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise CannotRun(
            "no Docker daemon answers. As root `make compose-test` starts one of its own where "
            f"dockerd is installed ({NEEDED}); else start one: dockerd >/tmp/dockerd.log 2>&1 &"
        )
    with _daemon(work) as environment:
        yield Docker(environment, compose, started=True)


def _compose() -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "version"], capture_output=True, check=False)
        if done.returncode == 0:
            return command
    raise CannotRun(f"there is no Compose, neither the plugin nor docker-compose: {NEEDED}")


def _answers(environment: Mapping[str, str]) -> bool:
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    done = subprocess.run(command, capture_output=True, env=dict(environment), check=False)
    return done.returncode == 0


@contextmanager
def _daemon(work: Path) -> Iterator[dict[str, str]]:
    """A daemon with folders of its own, all removed at the end."""
    data = work / "docker"
    runs = Path("/run") / f"aibrix-compose-test-{os.getpid()}"  # short: it holds Unix sockets
    environment = dict(os.environ) | {"DOCKER_HOST": f"unix://{runs}/docker.sock"}
    environment.pop("DOCKER_CONTEXT", None)
    log = work / "dockerd.log"
    had_bridge = _BRIDGE.exists()
    try:
        for options in DAEMON_OPTIONS:
            runs.mkdir(exist_ok=True)
            process = _start_daemon(runs, data, log, options)
            try:
                if _comes_up(process, environment):
                    print(f"started a Docker daemon of its own ({log})", flush=True)
                    yield environment
                    return
            finally:
                process.terminate()
                process.wait()
            shutil.rmtree(data, ignore_errors=True)
    finally:
        # What a daemon that ends leaves behind, but its chains of iptables.
        _quietly("umount", f"{runs}/exec/netns/default")
        if not had_bridge and _BRIDGE.exists():
            _quietly("ip", "link", "delete", _BRIDGE.name)
        shutil.rmtree(runs, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
    tail = "\n    ".join(log.read_text(errors="replace").splitlines()[-8:])
    raise CannotRun(f"dockerd does not run here:\n    {tail}")


def _quietly(*command: str) -> None:
    if shutil.which(command[0]):
        subprocess.run(command, capture_output=True, check=False)


def _start_daemon(
    runs: Path, data: Path, log: Path, options: Sequence[str]
) -> "subprocess.Popen[bytes]":
    command = ["dockerd", f"--data-root={data}", f"--exec-root={runs}/exec"]
    command += [f"--host=unix://{runs}/docker.sock", f"--pidfile={runs}/docker.pid", *options]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _comes_up(process: "subprocess.Popen[bytes]", environment: Mapping[str, str]) -> bool:
    deadline = time.monotonic() + DAEMON_STARTS_S
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(environment):
            return True
        time.sleep(0.1)
    return False
