"""Which implementation of the index serves, and who says so."""

import shutil
import sys
from collections.abc import Iterator

import pytest

import aibrix_extproc
from aibrix_extproc import index
from aibrix_extproc.index import Backend, BackendMissing, backends, open_index, reference
from tests.backends import CORE_IS_BUILT, needs_core


@pytest.mark.skipif(shutil.which("cargo") is None, reason="there is no cargo here")
def test_the_core_is_built_wherever_cargo_is() -> None:
    assert CORE_IS_BUILT, "cargo is here: run `make core` and look at its output"


def test_the_reference_can_always_be_had() -> None:
    backend, opened = open_index(Backend.REFERENCE, 0, 10)
    assert backend == "reference"
    assert type(opened) is reference.PrefixIndex


@needs_core
@pytest.mark.parametrize("wanted", [None, Backend.CORE])
def test_the_core_serves_where_it_is_built(wanted: Backend | None) -> None:
    backend, opened = open_index(wanted, 0, 10)
    assert backend == index.BACKEND == "core"
    assert type(opened) is index.PrefixIndex
    assert type(opened).__module__ == "aibrix_extproc._core"


@pytest.fixture
def without_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """The module as it is where the extension was not built."""
    monkeypatch.setitem(sys.modules, "aibrix_extproc._core", None)
    monkeypatch.delattr(aibrix_extproc, "_core", raising=False)
    monkeypatch.delitem(sys.modules, "aibrix_extproc.index.backends")
    import aibrix_extproc.index.backends as bare  # noqa: PLC0415

    yield bare
    sys.modules["aibrix_extproc.index.backends"] = backends
    index.backends = backends  # type: ignore[attr-defined]


def test_without_the_core_the_reference_serves(without_core) -> None:  # type: ignore[no-untyped-def]
    assert without_core.BACKEND == "reference"
    backend, opened = without_core.open_index(None, 0, 10)
    assert (backend, type(opened)) == ("reference", reference.PrefixIndex)


def test_without_the_core_asking_for_it_is_an_error(without_core) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(without_core.BackendMissing, match="not built"):
        without_core.open_index(without_core.Backend.CORE, 0, 10)
    assert BackendMissing is not without_core.BackendMissing, "the fixture's own module"
