"""`make compose-test`: the shipped image and compose file on a real Docker engine.

    .venv/bin/python -m tests.compose

Builds a base of Debian's packages (nothing is pulled), the image, Envoy and Prometheus on it, runs
docker-compose.yaml as it is with these images, and goes through the checks below. 0: all hold, or
Docker cannot run here, which is said. 1: one does not. Everything is removed at the end; with
COMPOSE_TEST_KEEP=1 the images stay for the next run. Logs and the base stay in .compose-test/.
"""

import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from tests.compose import image_checks, images, stack_checks
from tests.compose.docker_engine import CannotRun, Docker, Failed, engine
from tests.compose.project import NAME, Project, keep, leftovers, running

WORK: Final = images.ROOT / ".compose-test"
STACK_CHECKS: Final[tuple[tuple[str, Callable[[Project], str]], ...]] = (
    ("all containers become healthy, both processors EXACT", stack_checks.comes_up),
    ("no container has more rights than it needs", stack_checks.confined),
    ("the same prefix goes to the same pod", stack_checks.routes),
    ("profile loadtest", stack_checks.loadtest),
    ("profile monitoring", stack_checks.monitoring),
    ("one engine is scaled away under load", stack_checks.engine_scaled_away),
    ("one engine is killed under load", stack_checks.engine_killed),
    ("one processor is killed under load", stack_checks.processor_killed),
    ("one processor is stopped under load", stack_checks.processor_stopped),
    ("the tokenizer is stopped under load", stack_checks.tokenizer_stopped),
)


def main() -> int:
    """Run it all; see the module."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    WORK.mkdir(exist_ok=True)
    try:
        images.check_needs()
        with engine(WORK) as docker:
            try:
                _run(docker)
            finally:
                if not keep():
                    images.remove(docker)
    except CannotRun as reason:
        print(f"compose-test is skipped: {reason}")
        return 0
    except Failed as failure:
        print(f"FAILED  {failure}")
        return 1
    print("compose-test: every check holds")
    return 0


def _run(docker: Docker) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}: {_line(docker.versions())}", flush=True)
    base = _step("base image", lambda: images.base(docker, WORK))
    _step("image", lambda: images.project(docker, WORK, base, images.IMAGE, images.CORE))
    _step(
        "image without the compiled index",
        lambda: images.project(docker, WORK, base, images.REFERENCE, "none"),
    )
    _step("image of Envoy", lambda: images.envoy(docker, WORK, base))
    _step("image of Prometheus", lambda: images.prometheus(docker, WORK, base))
    _step("size", lambda: image_checks.size(docker, base))
    _step("the image's configuration", lambda: image_checks.configuration(docker))
    _step("the image's contents", lambda: image_checks.contents(docker, base))
    _step("a setting that cannot be used", lambda: image_checks.bad_setting(docker))
    with running(docker, WORK) as project:
        for name, check in STACK_CHECKS:
            _step(name, partial(check, project))
        mounts = str(Path(project.folder) / "envoy")
        _step(
            "without the compiled index the reference serves",
            lambda: image_checks.without_core(docker, f"{NAME}_gateway", mounts),
        )
    left = leftovers(docker)
    if left:
        raise Failed(f"left behind: {left}")


def _step(name: str, check: Callable[[], str | None]) -> str:
    begun = time.monotonic()
    try:
        said = check() or ""
    except Failed as failure:
        raise Failed(f"{name}: {failure}") from None
    print(f"ok  {name}{': ' if said else ''}{said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return said


def _line(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


if __name__ == "__main__":
    sys.exit(main())
