"""What is asked of the image alone: size, user, rights, contents, signals.

Each check is a function of a `Docker`; it returns its evidence in a few words, or raises Failed.
"""

import json
import time
from typing import Any, Final

from tests.compose import images
from tests.compose.docker_engine import Docker, Failed

LAYERS_LIMIT_BYTES: Final = 130_000_000
TOOLS: Final = (
    *("gcc", "cc", "g++", "c++", "clang", "ld", "as", "ar", "strip", "make", "cmake"),
    *("cargo", "rustc", "rustup", "pip", "pip3", "git", "patch"),
)
_OFFLINE: Final = "--network=none"
_CONFINED: Final = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
_LOOK: Final = """
import json, os, pathlib, shutil, sys
added = pathlib.Path("/opt/aibrix-extproc")
writable = []
for folder in ("/", "/opt", str(added), "/etc", "/usr", "/var", "/tmp", "/home", "/root"):
    try:
        path = os.path.join(folder, "written")
        open(path, "w").close()
        writable.append(folder)
    except OSError:
        pass
unwanted = [str(p) for pattern in ("*.h", "*.whl", "*.rs", "*.c", "pip", "setuptools", "cargo*")
            for p in added.rglob(pattern)]
print(json.dumps({"uid": os.getuid(), "gid": os.getgid(), "writable": writable,
                  "tools": [t for t in sys.argv[1:] if shutil.which(t)], "unwanted": unwanted}))
"""


def size(docker: Docker, base_image: str) -> str:
    """What it adds to its base."""
    measured = images.built(docker, base_image)
    if measured.layers_bytes > LAYERS_LIMIT_BYTES:
        raise Failed(f"{measured.layers_bytes:,} bytes of layers, above {LAYERS_LIMIT_BYTES:,}")
    core = "with" if measured.core else "WITHOUT"
    return (
        f"{measured.layers_bytes / 1e6:.1f} MB of layers above the base, {core} the compiled index"
    )


def configuration(docker: Docker) -> str:
    """User, signals, health check and labels."""
    config = docker.inspect("image", "inspect", images.IMAGE)["Config"]
    expected = {
        "User": "65532:65532",
        "Entrypoint": ["aibrix-extproc"],
        "Cmd": ["serve"],
        "StopSignal": "SIGTERM",
    }
    different = {key: config.get(key) for key, value in expected.items() if config[key] != value}
    if different:
        raise Failed(f"the image has {different}")
    if config["Healthcheck"]["Test"][:2] != ["CMD", "python3"]:
        raise Failed(f"its health check is {config['Healthcheck']}")
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    version = docker("run", "--rm", *_CONFINED, _OFFLINE, images.IMAGE, "--version")
    if labels["version"] != version or not labels["revision"]:
        raise Failed(f"--version says {version}, its labels {labels}")
    return f"user 65532, SIGTERM to the process itself, --version {version}"


def contents(docker: Docker, base_image: str) -> str:
    """No tool that builds, nothing to write to, no root."""
    ours, bare = (_look(docker, name) for name in (images.IMAGE, base_image))
    tools = sorted(set(ours["tools"]) - set(bare["tools"]))
    if tools or ours["unwanted"]:
        raise Failed(f"it has {tools}, and {ours['unwanted'][:5]}")
    if ours["writable"] or ours["uid"] != 65532:
        raise Failed(f"as user {ours['uid']} it may write to {ours['writable']}")
    has = ", ".join(bare["tools"]) or "none"
    return f"no build tool (the base: {has}), no pip, no header; nothing can be written"


def _look(docker: Docker, image: str) -> dict[str, Any]:
    run = [
        "run",
        "--rm",
        *_CONFINED,
        _OFFLINE,
        "--entrypoint",
        "python3",
        image,
        "-c",
        _LOOK,
        *TOOLS,
    ]
    found: dict[str, Any] = json.loads(docker(*run))
    return found


def bad_setting(docker: Docker) -> str:
    """A setting that cannot be used ends it with 2, and is named."""
    command = [
        "docker",
        "run",
        "--rm",
        *_CONFINED,
        _OFFLINE,
        "--env=AIBRIX_EXTPROC_MAX_STREAMS=none",
    ]
    done = docker.run([*command, images.IMAGE], check=False)
    said = done.stdout + done.stderr
    if done.returncode != 2 or "AIBRIX_EXTPROC_MAX_STREAMS" not in said:
        raise Failed(f"exit code {done.returncode}: {said[-300:]}")
    return "exit code 2, and the variable is named"


def without_core(docker: Docker, network: str, mounts: str) -> str:
    """The image that was built without a toolchain serves by the reference, and says so."""
    run = ["run", "--detach", *_CONFINED, f"--network={network}", f"--volume={mounts}:/e:ro"]
    for name, value in (
        ("AIBRIX_EXTPROC_ENDPOINTS_FILE", "/e/endpoints.yaml"),
        ("AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED", "true"),
        ("AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER", "true"),
    ):
        run.append(f"--env={name}={value}")
    container = docker(*run, images.REFERENCE)
    try:
        page = _ready(docker, container)
        log = docker.run(["docker", "logs", container]).stderr
        if page["index_backend"] != "reference" or "compiled index is not built" not in log:
            raise Failed(f"/readyz says {page}, its log {log[-300:]}")
        begun = time.monotonic()
        docker("stop", "--time=15", container)
        code = docker.inspect("inspect", container)["State"]["ExitCode"]
        if code != 0:
            raise Failed(f"exit code {code} after SIGTERM")
        return f"/readyz and the log say so; SIGTERM ends it after {time.monotonic() - begun:.0f} s"
    finally:
        docker("rm", "--force", container)


def _ready(docker: Docker, container: str) -> dict[str, object]:
    deadline = time.monotonic() + 60
    command = ["docker", "exec", container, "python3", "-m", "aibrix_extproc.health"]
    while time.monotonic() < deadline:
        done = docker.run(command, check=False)
        if done.returncode == 0:
            page: dict[str, object] = json.loads(done.stdout.partition(" ")[2])
            return page
        time.sleep(0.2)
    raise Failed(f"not ready: {done.stdout}{done.stderr}")
