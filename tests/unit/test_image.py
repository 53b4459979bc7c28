"""The Dockerfile and the scripts of its build stage. `make compose-test` builds it with Docker."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aibrix_extproc.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TOOLCHAIN = ROOT / "deploy" / "image" / "toolchain"


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
    assert {s for s in sources if not any(f"{s}/".startswith(f"{one}/") for one in sent)} == set()
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_does_not_run_as_root() -> None:
    assert re.search(r"^USER 65532:65532$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_labelled_with_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nARG VERSION={project['version']}\n" in DOCKERFILE
    labels = dict(re.findall(r"org\.opencontainers\.image\.(\w+)=\"([^\"]*)\"", DOCKERFILE))
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "licenses": project["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
    }


def test_what_the_image_leaves_out_is_not_imported() -> None:
    """deploy/image/install removes the second client of the package kubernetes."""
    assert "kubernetes/aio" in (ROOT / "deploy" / "image" / "install").read_text()
    code = [path.read_text() for path in (ROOT / "aibrix_extproc").rglob("*.py")]
    assert not any(re.search(r"kubernetes\.aio|kubernetes import aio", text) for text in code)


def toolchain(tmp_path: Path, core: str, cargo: str | None) -> "subprocess.CompletedProcess[str]":
    """Run the script where nothing can be installed, with a cargo of this version, or none."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sed", "sort", "head", "cut"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").symlink_to("/bin/true")
    if cargo is not None:
        (tools / "cargo").write_text(f"#!/bin/sh\necho 'cargo {cargo}'\n")
        (tools / "cargo").chmod(0o755)
    (tmp_path / "core").mkdir()
    shutil.copy(ROOT / "core" / "Cargo.toml", tmp_path / "core")
    environment = {"PATH": str(tools), "CORE": core, "DEBIAN_MIRROR": "http://127.0.0.1:9"}
    return subprocess.run(
        ["/bin/sh", str(TOOLCHAIN)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the tools of a Debian base")
@pytest.mark.parametrize(
    ("core", "cargo", "status", "said"),
    [
        ("auto", None, 0, "will serve by the index in plain Python"),
        ("auto", "1.63.0 (a0b1)", 0, "will serve by the index in plain Python"),
        ("auto", "1.200.1 (a0b1)", 0, "cargo 1.200.1"),
        ("required", "1.63.0", 1, "no Rust 1."),
        ("required", "2.0.0", 0, "cargo 2.0.0"),
        ("none", "2.0.0", 0, "left out"),
        ("maybe", "2.0.0", 2, "write auto, required or none"),
    ],
)
def test_a_missing_or_old_rust_fails_the_build_only_where_the_core_is_required(
    tmp_path: Path, core: str, cargo: str | None, status: int, said: str
) -> None:
    done = toolchain(tmp_path, core, cargo)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the tools of a Debian base")
def test_a_wheel_of_this_project_needs_no_rust(tmp_path: Path) -> None:
    wheels = tmp_path / "deploy" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "aibrix_extproc-1-py3-none-any.whl").touch()
    assert toolchain(tmp_path, "required", None).returncode == 0
