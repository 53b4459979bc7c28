"""deploy/monitoring: every rule is about what exists, is explained, fires, and is silent else."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc.decide.basis import Basis
from aibrix_extproc.errors import RequestError
from aibrix_extproc.index.results import SKIP_REASONS
from aibrix_extproc.kvevents.effects import ClearReason, SourceState
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer.types import REASONS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
TEST_FILES = ("rules_test.yaml", "rules_test_burn.yaml", "rules_test_day.yaml")
TESTS: list[dict[str, Any]] = [
    test for name in TEST_FILES for test in yaml.safe_load((FOLDER / name).read_text())["tests"]
]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()

OF_PROMETHEUS = {"up": set[str]()}
"""What Prometheus itself adds: series of every scrape, and labels of every series."""
TARGET_LABELS = {"job", "instance"}

SELECTOR = re.compile(r"\b(?P<metric>[a-z][a-z0-9_:]*)\s*(?:\{(?P<labels>[^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(by|without|on|ignoring)\s*\(([^)]*)\)")
WORDS = {"sum", "rate", "increase", "abs", "vector", "count", "and", "or", "unless", "group_left"}
WORDS |= {"quantile_over_time"}
CLOSED = {
    ("aibrix_kv_source_state", "state"): list(SourceState),
    ("aibrix_kv_source_clears_total", "reason"): list(ClearReason),
    ("aibrix_kv_skipped_events_total", "reason"): list(SKIP_REASONS),
    ("aibrix_extproc_tokenizer_failures_total", "reason"): list(REASONS),
    ("aibrix_extproc_decision_basis_total", "basis"): list(Basis),
    ("aibrix_prefix_cache_routing_errors_total", "error_type"): [
        error.reason for error in RequestError.__subclasses__()
    ],
}
"""Metric and label → the values that it can have."""


def exported() -> dict[str, set[str]]:
    """Metric name as Prometheus shows it → its labels."""
    found = dict(OF_PROMETHEUS)
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            found[name] = set(metric._labelnames)
    return found


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics of an expression, each with its matchers."""
    without_groupings = GROUPING.sub("", expression)
    return [
        (found["metric"], MATCHER.findall(found["labels"] or ""))
        for found in SELECTOR.finditer(re.sub(r"\[\w+\]", "", without_groupings))
        if found["metric"] not in WORDS
    ]


def names(rules: list[dict[str, Any]]) -> list[str]:
    return [rule["alert"] for rule in rules]


every_rule = pytest.mark.parametrize("rule", RULES, ids=names(RULES))


@every_rule
def test_every_metric_and_label_of_a_rule_exists(rule: dict[str, Any]) -> None:
    known = exported()
    used = selectors(rule["expr"])
    assert used
    labels = set(TARGET_LABELS)
    for metric, matchers in used:
        assert metric in known
        assert {name for name, _, _ in matchers} <= known[metric] | TARGET_LABELS
        labels |= known[metric]
    for _, grouped in GROUPING.findall(rule["expr"]):
        assert {name.strip() for name in grouped.split(",")} <= labels
    shown = {
        label
        for text in rule["annotations"].values()
        for label in re.findall(r"\$labels\.(\w+)", text)
    }
    kept = re.search(r"\bby \(([^)]*)\)", rule["expr"])
    assert shown <= ({name.strip() for name in kept[1].split(",")} if kept else labels)


@every_rule
def test_every_value_that_a_rule_names_can_occur(rule: dict[str, Any]) -> None:
    for metric, matchers in selectors(rule["expr"]):
        for label, _, value in matchers:
            possible = CLOSED.get((metric, label))
            for one in value.split("|") if possible else ():
                assert any(re.fullmatch(one, str(other)) for other in possible or ()), one


def test_values_of_open_lists_are_those_of_the_page_of_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for rule in RULES:
        for metric, matchers in selectors(rule["expr"]):
            row = next((line for line in page.splitlines() if f"| `{metric}` |" in line), None)
            assert row is not None or metric in OF_PROMETHEUS
            for label, _, value in matchers if row else ():
                words = [word for word in value.split("|") if "*" not in word and label != "ready"]
                assert row is not None
                assert [word for word in words if f"`{word}`" not in row] == []


@every_rule
def test_a_rule_says_how_bad_what_why_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    headings = re.findall(r"^## (.*)$", OPERATIONS, re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_page_of_operations_lists_the_same_alerts() -> None:
    listed = re.findall(r"^\| `(Aibrix\w+)` \|", OPERATIONS, re.MULTILINE)
    assert sorted(listed) == sorted(names(RULES))


def test_the_rules_of_the_operator_are_the_same_rules() -> None:
    lines = (FOLDER / "rules.yaml").read_text().splitlines(keepends=True)
    head = (FOLDER / "prometheusrule-head.yaml").read_text()
    made = yaml.safe_load(head + "".join(f"  {line}" for line in lines))
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert [rule for group in made["spec"]["groups"] for rule in group["rules"]] == RULES


def test_a_rule_knows_the_jobs_of_the_configuration() -> None:
    jobs = {job["job_name"] for job in CONFIG["scrape_configs"]}
    named = {
        value
        for rule in RULES
        for _, matchers in selectors(rule["expr"])
        for label, _, value in matchers
        if label == "job"
    }
    assert named == {"aibrix-extproc", "vllm"}
    assert named <= jobs


def test_prometheus_scrapes_every_processor_and_engine_of_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    ports = {"processor": 8080, "engine": 8000, "tokenizer": 8000}
    expected = {
        f"{name}:{port}"
        for name in services
        for prefix, port in ports.items()
        if name.startswith(prefix)
    }
    scraped = {
        target
        for job in CONFIG["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert scraped == expected


def test_every_alert_is_shown_to_fire_and_to_be_silent() -> None:
    expected = [
        check["exp_samples"] for test in TESTS for check in test.get("promql_expr_test", ())
    ]
    fired = [sample["labels"] for samples in expected for sample in samples]
    assert {re.findall(r'alertname="(\w+)"', labels)[0] for labels in fired} == set(names(RULES))
    for test in TESTS:
        checks = test.get("promql_expr_test", [])
        silent_first = not checks or checks[0]["exp_samples"] == []
        assert silent_first or len(checks) == 1, test["name"]


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package `prometheus`)")
    done = subprocess.run(
        [tool, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yaml")


@pytest.mark.parametrize("file", TEST_FILES)
def test_promtool_sees_each_alert_fire_for_its_own_trouble_alone(file: str) -> None:
    promtool("test", "rules", file)
