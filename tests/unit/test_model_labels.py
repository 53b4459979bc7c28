"""The metric label `model`: known models alone, a bounded number, and gone when they are gone."""

import pytest

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.metrics import Metrics


def pod(name: str, model: str) -> Pod:
    return Pod("default", name, "uid", f"10.0.0.1:{8000 + ord(name[0])}", model)


def label_values(metrics: Metrics) -> set[str]:
    samples = [s for metric in metrics.registry.collect() for s in metric.samples]
    return {s.labels["model"] for s in samples if "model" in s.labels}


def count_everything(metrics: Metrics, model: str) -> None:
    """A sample in each metric with that label, as decisions make them."""
    value = metrics.models.of(model)
    for metric in metrics.models._metrics:
        others = {name: "x" for name in metric._labelnames if name != "model"}
        child = metric.labels(model=value, **others)
        (getattr(child, "inc", None) or child.observe)(1)


def test_a_name_that_no_pod_serves_is_no_value() -> None:
    metrics = Metrics()
    Registry(metrics).replace([pod("a", "llama")])
    count_everything(metrics, "made up by a client")
    assert label_values(metrics) == {"other", "llama"}


def test_the_series_of_a_model_go_with_its_last_pod() -> None:
    metrics = Metrics()
    registry = Registry(metrics)
    registry.replace([pod("a", "llama"), pod("b", "qwen")])
    for name in registry.model_names():
        count_everything(metrics, name)
    assert label_values(metrics) == {"llama", "qwen"}
    assert len(metrics.models._metrics) >= 6
    registry.remove("default/b")
    registry.model_names()
    assert label_values(metrics) == {"llama"}
    # A request that was under way then does not bring them back.
    count_everything(metrics, "qwen")
    assert label_values(metrics) == {"llama", "other"}


def test_past_the_bound_further_models_count_as_other_until_there_is_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics(max_model_labels=2)
    registry = Registry(metrics)
    registry.replace([pod(name, f"model-{name}") for name in "abcde"])
    for name in registry.model_names():
        count_everything(metrics, name)
    assert metrics.models.of("model-a") == "model-a"
    assert [metrics.models.of(f"model-{name}") for name in "cde"] == ["other"] * 3
    assert len([r for r in caplog.records if "AIBRIX_EXTPROC_MAX_MODEL_LABELS" in r.message]) == 1
    registry.remove("default/a")
    registry.model_names()
    assert metrics.models.of("model-c") == "model-c"


def test_churn_of_models_leaves_nothing_behind() -> None:
    metrics = Metrics(max_model_labels=5)
    registry = Registry(metrics)
    sizes = []
    for number in range(60):
        registry.replace([pod("a", f"model-{number}")])
        for name in registry.model_names():
            count_everything(metrics, name)
        sizes.append(sum(len(metric.samples) for metric in metrics.registry.collect()))
    assert len(set(sizes[1:])) == 1
