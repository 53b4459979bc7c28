"""docs/metrics.md and the metrics are one list."""

import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc.decide.basis import Basis
from aibrix_extproc.decide.shortfalls import Shortfall
from aibrix_extproc.errors import RequestError
from aibrix_extproc.index.results import SKIP_REASONS
from aibrix_extproc.kvevents.effects import ClearReason, SourceState
from aibrix_extproc.kvevents.wire import BadFrame
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.routing import words
from aibrix_extproc.tokenizer.types import REASONS

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
CODE = re.compile(r"`([^`]+)`")


def rows() -> dict[str, list[str]]:
    """Metric name → the cells of its row: name, labels, meaning, what to do."""
    found: dict[str, list[str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`aibrix_"):
            name = cells[0].strip("`")
            assert name not in found, f"{name} stands twice"
            found[name] = cells
    return found


def exported() -> dict[str, tuple[str, ...]]:
    """Metric name as Prometheus shows it → its labels."""
    found = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            found[name] = tuple(metric._labelnames)
    return found


def test_every_metric_is_explained_and_none_that_does_not_exist() -> None:
    assert sorted(rows()) == sorted(exported())


def test_every_label_is_named() -> None:
    labels = {name: tuple(CODE.findall(cells[1])) for name, cells in rows().items()}
    assert labels == exported()


def test_every_metric_has_a_meaning_and_something_to_do() -> None:
    assert [name for name, cells in rows().items() if not (cells[2] and cells[3])] == []


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("aibrix_kv_skipped_events_total", list(SKIP_REASONS)),
        ("aibrix_kv_source_clears_total", list(ClearReason)),
        ("aibrix_extproc_decision_basis_total", list(Basis)),
        ("aibrix_kv_source_state", list(SourceState)),
        ("aibrix_kv_bad_frames_total", list(BadFrame)),
        ("aibrix_extproc_tokenizer_failures_total", list(REASONS)),
        ("aibrix_extproc_strategy_fallback_total", list(Shortfall)),
        (
            "aibrix_prefix_cache_routing_selection_total",
            sorted(set(words.REASONS) - {"prefix", "load"}),
        ),
        (
            "aibrix_prefix_cache_routing_errors_total",
            [error.reason for error in RequestError.__subclasses__()],
        ),
    ],
)
def test_every_value_of_a_closed_list_is_named(metric: str, values: list[str]) -> None:
    named = set(CODE.findall(rows()[metric][2]))
    assert {str(value) for value in values} <= named


def test_what_the_page_names_elsewhere_exists() -> None:
    mentioned = {name for name in CODE.findall(PAGE) if name.startswith("aibrix_")}
    names = set(exported())
    expressions = {word for code in mentioned for word in re.findall(r"aibrix_\w+", code)}
    assert expressions <= names
