"""The dashboard: it is about metrics that exist, explains itself, and stays readable."""

import itertools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.dashboard_facts import (
    DASHBOARD,
    OF_GRAFANA,
    PANELS,
    QUERIES,
    ROOT,
    RULES,
    TARGET_LABELS,
    VARIABLE,
    VARIABLES,
    exported,
    filled,
)
from tests.unit.promql import NotPromQL, parse

UNITS = {"short", "none", "s", "bytes", "percentunit", "reqps", "ops", "suffix: cores"}
KINDS = {"timeseries", "heatmap", "bargauge", "table"}
NEITHER_SHOWN_NOR_ALERTED = {
    "aibrix_prefix_cache_load_imbalance_total": "the selection `imbalance` says the same",
    "aibrix_prefix_cache_indexer_status": "a setting; the lever that changes it is shown",
    "aibrix_extproc_lever_pulls_total": "the log has each, and a lever that is moved is shown",
    "aibrix_extproc_shadow_picks_total": "by pod, and only while shadow mode is on",
    "aibrix_extproc_token_flushes_total": "follows engine restarts, which are shown",
    "aibrix_extproc_prediction_error_tokens": "the sampled share says it in one number",
    "aibrix_extproc_start_delay_seconds": "0 without a limit; what follows from it is shown",
    "aibrix_extproc_prefills_total": "for who asks what load rests on",
    "aibrix_extproc_start_error_seconds": "for who sets that limit: whether to trust it",
    "aibrix_extproc_scheduled_requests_total": "of how many the figures are that are shown",
    "aibrix_extproc_scheduled_followed": "the same",
    "aibrix_extproc_live_cut_total": "costs no request; the page itself says it",
    "aibrix_extproc_tls_reloads_total": "the alert looks at `tls_renewal_broken`",
    "aibrix_kv_snapshots_opened_total": "happens once, at start; the log says it",
    "aibrix_kv_snapshot_sources_total": "the same",
    "aibrix_kv_snapshot_saved_timestamp_seconds": "failed saves are shown and alerted",
    "aibrix_kv_snapshot_bytes": "follows the size of the index, which is shown",
    "process_virtual_memory_bytes": "says nothing; the resident memory is shown",
    "process_start_time_seconds": "what Prometheus cannot scrape is alerted",
    "python_gc_objects_collected_total": "the number of collections is shown",
    "python_gc_objects_uncollectable_total": "a fault that shows as memory",
}
"""Every other metric of docs/metrics.md is in a panel or a rule."""

every_panel = pytest.mark.parametrize("panel", PANELS, ids=[one["title"] for one in PANELS])
every_query = pytest.mark.parametrize(
    ("panel", "expression", "legend"), QUERIES, ids=[f"{one[0]}-{one[2]}" for one in QUERIES]
)


@every_query
def test_every_metric_and_label_of_a_panel_exists(panel: str, expression: str, legend: str) -> None:
    found = parse(filled(expression))
    assert found.selectors
    known = set(TARGET_LABELS)
    for selector in found.selectors:
        assert selector.metric in exported()
        _, labels = exported()[selector.metric]
        assert {name for name, _, _ in selector.matchers} <= labels | TARGET_LABELS
        known |= labels
    grouped = {label for _, labels in found.grouped for label in labels}
    assert grouped <= known
    kept = {label for word, labels in found.grouped if word == "by" for label in labels}
    assert set(re.findall(r"\{\{\s*(\w+)\s*\}\}", legend)) <= kept - {"le"} or legend == "{{le}}"


@every_query
def test_a_value_that_a_panel_asks_for_is_one_that_the_page_of_metrics_names(
    panel: str, expression: str, legend: str
) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for selector in parse(filled(expression)).selectors:
        for name, _, value in selector.matchers:
            if value != ".*":
                (row,) = re.findall(rf"^\| `{selector.metric}` \|.*$", page, re.MULTILINE)
                assert [one for one in value.split("|") if f"`{one}`" not in row] == [], name


@every_query
def test_counters_are_read_as_rates_and_gauges_as_they_are(
    panel: str, expression: str, legend: str
) -> None:
    for selector in parse(filled(expression)).selectors:
        kind, _ = exported()[selector.metric]
        assert bool(selector.function) == (kind != "gauge"), selector.metric


@every_query
def test_a_histogram_is_read_by_its_buckets(panel: str, expression: str, legend: str) -> None:
    buckets = [one for one in parse(filled(expression)).selectors if one.metric.endswith("_bucket")]
    quantiles = re.findall(r"histogram_quantile\([\d.]+, sum by \(le[,)]", expression)
    assert expression.count("histogram_quantile") == len(quantiles)
    assert not quantiles or buckets
    if buckets:
        assert re.search(r"sum by \(le[,)]", expression)


@every_query
def test_a_panel_looks_only_at_what_is_chosen(panel: str, expression: str, legend: str) -> None:
    for selector in parse(VARIABLE.sub(r"_\1_", expression)).selectors:
        of_engines = selector.metric.startswith("vllm:")
        wanted = (
            {"job": "_engine_job_"} if of_engines else {one: f"_{one}_" for one in TARGET_LABELS}
        )
        chosen = {name: value for name, operator, value in selector.matchers if operator == "=~"}
        assert wanted.items() <= chosen.items()
        for name in {"pod", "model"} & exported()[selector.metric][1] - (
            {"pod"} if of_engines else set()
        ):
            total = "sum(rate(aibrix_prefix_cache_routing_errors_total" in expression
            assert chosen.get(name) == f"_{name}_" or total, (
                "what is shared out of all has no model"
            )


@every_query
def test_two_hundred_pods_make_no_flood_of_lines(panel: str, expression: str, legend: str) -> None:
    found = parse(filled(expression))
    many = {"pod", "rank"} | ({"instance"} if "vllm:" in expression else set())
    lines = {label for word, labels in found.grouped if word == "by" for label in labels}
    aggregated = re.match(
        r"(topk|bottomk|sum|max|min|avg|quantile|histogram_quantile|\(?sum|1 - sum)\b", expression
    )
    assert aggregated, "every series would be a line"
    limited = re.search(r"^(topk|bottomk)\((\d+),", expression)
    assert not many & lines or limited or re.match(r"(max|avg|min)\(sum by", expression)
    assert limited is None or int(limited[2]) <= 30


def test_every_variable_is_defined_and_used() -> None:
    used = set(VARIABLE.findall(str(PANELS) + str(list(VARIABLES.values()))))
    assert used - {*OF_GRAFANA, "__all"} == set(VARIABLES)
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            assert (variable["allValue"], variable["includeAll"]) == (".*", True)
            assert variable["multi"]
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None
            (selector,) = parse(filled(asked[1])).selectors
            assert variable["definition"] == variable["query"]["query"]
            labels = exported()[selector.metric][1] | TARGET_LABELS
            assert {asked[2], *(name for name, _, _ in selector.matchers)} <= labels


def test_every_query_goes_to_the_source_of_data_that_is_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == chosen
        assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(
            panel["targets"]
        )
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
    assert VARIABLES["datasource"]["query"] == "prometheus"


@every_panel
def test_a_panel_has_a_unit_and_says_what_it_means_and_what_to_do(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    fields = panel["fieldConfig"]
    units = [fields["defaults"]["unit"]] + [
        one["value"]
        for override in fields["overrides"]
        for one in override["properties"]
        if one["id"] == "unit"
    ]
    assert set(units) <= UNITS
    assert len(panel["description"].split(". ")) >= 2, "what it means, and what to do"
    assert 80 < len(panel["description"]) < 620


@every_panel
def test_what_goes_to_the_right_axis_is_a_line_of_the_panel(panel: dict[str, Any]) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    for override in panel["fieldConfig"]["overrides"]:
        assert any(re.fullmatch(override["matcher"]["options"], one) for one in legends)


def test_what_a_description_names_exists() -> None:
    page = (ROOT / "README.md").read_text()
    for text in [DASHBOARD["description"], *(panel["description"] for panel in PANELS)]:
        for name in re.findall(r"\b(?:AIBRIX|ROUTING)_[A-Z_]+", text):
            assert f"`{name}`" in page, name
        for path in re.findall(r"\bdocs/\w+\.md", text):
            assert (ROOT / path).is_file(), path


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, two in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert apart_x or apart_y, (one, two)


def test_it_can_be_imported_and_has_the_rows_that_the_page_lists() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["id"]) == ("aibrix-extproc", None)
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["tags"]
    assert {one["id"] for one in DASHBOARD["__requires"] if one["type"] == "panel"} == KINDS
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert re.findall(r"^\| \*\*([^*]+)\*\* \|", page, re.MULTILINE) == rows
    assert len(PANELS) <= 32, "more than anybody looks at"


def test_every_metric_is_shown_or_alerted_or_left_out_for_a_reason() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = set(re.findall(r"^\| `((?:aibrix|process|python)_\w+)` \|", page, re.MULTILINE))
    queries = " ".join(expression for _, expression, _ in QUERIES)
    queries += " ".join(rule["expr"] for rule in RULES)
    used = {re.sub("_bucket$", "", one) for one in re.findall(r"\b[a-z]+_\w+", queries)}
    left_out = set(NEITHER_SHOWN_NOR_ALERTED)
    assert listed - used == left_out, "show it, alert on it, or say above why not"


def test_the_share_that_is_shown_is_the_one_that_alerts() -> None:
    (panel,) = (one for one in PANELS if one["title"] == "Failed and unpicked share")
    shown = {
        re.findall(r'(?:error_type|reason)=~"([a-z_|]+)"', one["expr"])[0]
        for one in panel["targets"]
    }
    alerted = {
        reasons
        for rule in RULES
        if rule["alert"].startswith(("AibrixRequestsFailed", "AibrixRequestsUnpicked"))
        for reasons in re.findall(r'(?:error_type|reason)=~"([a-z_|]+)"', rule["expr"])
    }
    assert shown == alerted


@pytest.mark.parametrize(
    "expression",
    [
        "sum(rate(a[5m])",
        "sum(rate(a[5m])))",
        "rate(a)",
        "a[5m]",
        "sums(a)",
        "a{b=}",
        "a{$b}",
        "a $x",
    ],
)
def test_the_small_parser_refuses_what_is_no_promql(expression: str) -> None:
    with pytest.raises(NotPromQL):
        parse(expression)


def promtool(where: Path, *arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package `prometheus`)")
    done = subprocess.run(
        [tool, *arguments], cwd=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_reads_every_expression(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": filled(expression)}
        for number, (_, expression, _) in enumerate(QUERIES)
    ]
    page = yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})
    (tmp_path / "panels.yaml").write_text(page)
    promtool(tmp_path, "check", "rules", "panels.yaml")


def series() -> list[dict[str, str]]:
    """Two replicas and two engines: a series for each value that a panel asks for."""
    made: dict[str, str] = {}
    for _, expression, _ in QUERIES:
        for selector in parse(filled(expression)).selectors:
            kind, labels = exported()[selector.metric]
            asked = {name: value for name, operator, value in selector.matchers if operator != "!="}
            values = [
                [(name, one) for one in (asked.get(name, ".*").split("|"))]
                for name in sorted(labels - {"le"})
            ]
            values += [[("le", "0.1"), ("le", "+Inf")]] if "le" in labels else []
            values += [[("instance", "a"), ("instance", "b")]]
            for pairs in itertools.product(*values):
                inside = ",".join(f'{name}="{v.replace(".*", "x")}"' for name, v in pairs)
                made[f"{selector.metric}{{{inside}}}"] = "1x20" if kind == "gauge" else "0+60x20"
    return [{"series": name, "values": values} for name, values in made.items()]


def test_every_expression_has_an_answer_where_its_metrics_are_there(tmp_path: Path) -> None:
    checks = [
        {
            "expr": f"count({filled(expression)}) > bool 0",
            "eval_time": "15m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for _, expression, _ in QUERIES
    ]
    test = {"interval": "1m", "input_series": series(), "promql_expr_test": checks}
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    promtool(tmp_path, "test", "rules", "answers.yaml")
