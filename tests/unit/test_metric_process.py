"""What is shown of the process itself: figures, explained in docs/metrics.md, and faults."""

import gc
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from aibrix_extproc.app import App
from aibrix_extproc.metric_process import watch_process
from aibrix_extproc.metrics import FAULT_PLACES
from aibrix_extproc.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()


def collected() -> dict[str, set[str]]:
    """Name as Prometheus shows it → its labels."""
    registry = CollectorRegistry()
    watch_process(registry)
    return {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
    }


def test_the_page_of_metrics_explains_each_with_its_labels() -> None:
    listed = re.findall(r"^\| `((?:process|python)_\w+)` \|([^|]*)\|", PAGE, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in listed} == collected()


def faults_in_the_code() -> set[str]:
    code = "".join(path.read_text() for path in (ROOT / "aibrix_extproc").rglob("*.py"))
    return set(re.findall(r"\bfaults\.labels\(\"(\w+)\"\)", code))


def test_faults_are_shown_before_the_first_so_that_it_is_a_rise() -> None:
    registry = App(Settings(endpoints_file="pods.yaml")).metrics.registry
    assert faults_in_the_code() == set(FAULT_PLACES)
    for where in FAULT_PLACES:
        assert registry.get_sample_value("aibrix_extproc_faults_total", {"where": where}) == 0
    reason = {"reason": "internal_error"}
    assert registry.get_sample_value("aibrix_extproc_passed_total", reason) == 0


def test_the_server_shows_its_own_memory_and_collections() -> None:
    registry = App(Settings(endpoints_file="pods.yaml")).metrics.registry
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 10e6
    before = registry.get_sample_value("python_gc_collections_total", {"generation": "2"}) or 0
    gc.collect()
    after = registry.get_sample_value("python_gc_collections_total", {"generation": "2"})
    assert after == before + 1
