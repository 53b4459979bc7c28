"""Which index the server opens, and how it says so."""

import logging

import pytest

from aibrix_extproc import app
from aibrix_extproc.app import App
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.index import Backend, BackendMissing, reference
from aibrix_extproc.settings import IndexBackend, Settings
from tests.backends import needs_core

NOT_BUILT = "the compiled index is not built"


def settings(backend: IndexBackend) -> Settings:
    return Settings(endpoints_file="pods.yaml", kv_index_backend=backend)


def told(built: App) -> set[str]:
    """The back ends whose gauge says that they serve."""
    gauge = built.metrics.index_backend_info
    return {b for b in Backend if gauge.labels(b)._value.get()}


def test_the_reference_serves_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    built = App(settings(IndexBackend.REFERENCE))
    assert type(built.index) is reference.PrefixIndex
    assert built.index_backend == "reference"
    assert told(built) == {"reference"}
    assert NOT_BUILT not in caplog.text


@needs_core
def test_the_core_serves_without_being_asked(caplog: pytest.LogCaptureFixture) -> None:
    built = App(settings(IndexBackend.AUTO))
    assert type(built.index).__module__ == "aibrix_extproc._core"
    assert told(built) == {"core"}
    assert NOT_BUILT not in caplog.text


def test_a_reference_that_nobody_asked_for_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "open_index", lambda *_: (Backend.REFERENCE, reference.PrefixIndex()))
    with caplog.at_level(logging.WARNING):
        built = App(settings(IndexBackend.AUTO))
    assert told(built) == {"reference"}
    assert NOT_BUILT in caplog.text


def test_a_core_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise BackendMissing("not built")

    monkeypatch.setattr(app, "open_index", missing)
    with pytest.raises(SettingsError, match="AIBRIX_KV_INDEX_BACKEND: not built"):
        App(settings(IndexBackend.CORE))
