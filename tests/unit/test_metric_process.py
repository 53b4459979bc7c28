"""What is shown of the process itself, and that docs/metrics.md explains it."""

import gc
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from aibrix_extproc.app import App
from aibrix_extproc.metric_process import watch_process
from aibrix_extproc.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


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


def test_the_server_shows_its_own_memory_and_collections() -> None:
    registry = App(Settings(endpoints_file="pods.yaml")).metrics.registry
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 10e6
    before = registry.get_sample_value("python_gc_collections_total", {"generation": "2"}) or 0
    gc.collect()
    after = registry.get_sample_value("python_gc_collections_total", {"generation": "2"})
    assert after == before + 1
