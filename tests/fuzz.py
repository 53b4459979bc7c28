"""Runs the hostile tests round after round, each with seeds of its own, until something breaks.

    .venv/bin/python -m tests.fuzz [--seconds 0]

A round is the Rust fuzz target (core/tests/hostile.rs; left out without cargo) and every test
marked `hostile`. The first failure ends it with exit code 1 and the seed that repeats it; 0 seconds
means without end. Ctrl-C ends it well.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
RUST_SECONDS: Final = 30
"""Of one round. The hostile tests take about as long."""
SCALE: Final = 2
HANGS_AFTER_S: Final = 900

PYTEST: Final = [
    "-m",
    "pytest",
    "-q",
    "-m",
    "hostile",
    "-n",
    "2",
    "--dist",
    "worksteal",
    "tests/unit",
]


def rust(seed: int, seconds: int) -> bool:
    command = ["cargo", "test", "--quiet", "--release", "--locked"]
    command += ["--manifest-path", "core/Cargo.toml", "--test", "hostile"]
    settings = {"AIBRIX_FUZZ_SECONDS": str(seconds), "AIBRIX_FUZZ_SEED": str(seed)}
    return run(command, settings)


def hostile(seed: int) -> bool:
    return run(
        [sys.executable, *PYTEST], {"AIBRIX_TEST_SEED": str(seed), "AIBRIX_TEST_SCALE": str(SCALE)}
    )


def run(command: list[str], settings: dict[str, str]) -> bool:
    """Whether it passed; its output is shown only where it did not."""
    environment = os.environ | settings
    try:
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                       timeout=HANGS_AFTER_S, check=True)  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failure:
        print(failure.stdout, failure.stderr, sep="\n")
        repeat = " ".join(f"{name}={value}" for name, value in settings.items())
        print(f"FAILED. This repeats it: {repeat} {' '.join(command)}", flush=True)
        return False
    return True


def rounds(seconds: float) -> int:
    """Rounds until one fails (exit code 1) or the time is over (0)."""
    started, number, with_rust = time.monotonic(), 0, shutil.which("cargo") is not None
    while not seconds or time.monotonic() - started < seconds:
        number += 1
        seed = secrets.randbits(32)
        left = seconds - (time.monotonic() - started) if seconds else RUST_SECONDS
        if with_rust and not rust(seed, max(1, min(RUST_SECONDS, int(left / 2)))):
            return 1
        if not hostile(seed):
            return 1
        print(f"round {number}: nothing broke, seed {seed}, "
              f"{time.monotonic() - started:.0f} s so far", flush=True)  # fmt: skip
    return 0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=0, help="0: without end")
    try:
        return rounds(options.parse_args().seconds)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
