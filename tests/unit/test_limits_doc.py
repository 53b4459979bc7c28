"""docs/limits.md names settings, metrics and tests that exist."""

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import variables

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "limits.md").read_text()


def cells(column: int) -> set[str]:
    """What stands in backticks in one column of the tables."""
    rows = [line.split("|")[1:-1] for line in PAGE.splitlines() if line.startswith("| ")]
    return {word for row in rows for word in re.findall(r"`(\w+)`", row[column])}


def test_each_setting_exists() -> None:
    assert len(cells(1)) > 10
    assert cells(1) <= set(variables())


def test_each_counter_exists() -> None:
    metrics = [m for m in vars(Metrics()).values() if isinstance(m, MetricWrapperBase)]
    names = {m._name + ("_total" if m._type == "counter" else "") for m in metrics}
    assert cells(4) <= names


def test_each_test_exists() -> None:
    found = set()
    for path in TESTS.rglob("test_*.py"):
        found |= set(re.findall(r"def (test_\w+)", path.read_text()))
    assert sorted(cells(5) - found) == []
