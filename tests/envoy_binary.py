"""Where the Envoy binary of the tests is: never skipped, a missing one is a failure."""

import os
from pathlib import Path

import pytest

VARIABLE = "AIBRIX_TEST_ENVOY"
_DEFAULT = Path(__file__).parent.parent / ".venv-envoy" / "bin" / "envoy"
_ELF = b"\x7fELF"


def envoy_path() -> Path:
    """The executable itself, behind the Python launcher that the wheel puts into `bin`."""
    given = Path(os.environ.get(VARIABLE) or _DEFAULT)
    if not given.is_file():
        pytest.fail(f"no Envoy at {given}: run `make setup`, or set {VARIABLE}")
    if _is_elf(given):
        return given
    packaged = given.parent.parent.glob("lib/python*/site-packages/envoy/**/envoy")
    for path in packaged:
        if path.is_file() and _is_elf(path):
            return path
    pytest.fail(f"{given} is no Envoy, nor the launcher of one")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF
