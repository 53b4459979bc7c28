"""The dashboard of deploy/monitoring/grafana, and the metrics that there are to show."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.exposition import exposition
from aibrix_extproc.fakes.rank import RankEngine
from aibrix_extproc.metric_process import watch_process
from aibrix_extproc.metrics import Metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana/aibrix-extproc.json").read_text())
PANELS: list[dict[str, Any]] = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
VARIABLES: dict[str, dict[str, Any]] = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES: list[tuple[str, str, str]] = [
    (panel["title"], target["expr"], target["legendFormat"])
    for panel in PANELS
    for target in panel["targets"]
]
"""Title of the panel, expression, legend."""

TARGET_LABELS = {"job", "instance", "namespace"}
"""What Prometheus adds: the last in Kubernetes alone."""
OF_GRAFANA = {"__rate_interval": "5m"}
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@functools.cache
def exported() -> dict[str, tuple[str, set[str]]]:
    """Series that a processor or an engine shows → kind (counter, gauge, histogram), labels."""
    found: dict[str, tuple[str, set[str]]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            kind, name, labels = metric._type, metric._name, set(metric._labelnames)
            if kind == "histogram":
                found |= {f"{name}_sum": ("counter", labels), f"{name}_count": ("counter", labels)}
                found[f"{name}_bucket"] = ("histogram", labels | {"le"})
            else:
                found[name + ("_total" if kind == "counter" else "")] = (kind, labels)
    registry = CollectorRegistry()
    watch_process(registry)
    engine = EngineConfig(kv_events_port=None, kv_replay_port=None)
    page = exposition(engine, [RankEngine(engine, 0, 1)])
    for family in [*registry.collect(), *text_string_to_metric_families(page)]:
        for sample in family.samples:
            found[sample.name] = (family.type, set(sample.labels))
    return found


def filled(expression: str) -> str:
    """The expression with every variable as it is when nothing is chosen: `.*`, or 5 minutes."""
    return VARIABLE.sub(lambda found: OF_GRAFANA.get(found[1], ".*"), expression)
