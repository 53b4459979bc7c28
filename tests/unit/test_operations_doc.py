"""docs/operations.md and SECURITY.md against the code: log lines, states, metrics, variables."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc.discovery.pods import MODEL_LABEL
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.levers import Lever
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings, variables

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "aibrix_extproc"
PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "operations.md").read_text())

OTHER_COMMANDS = {"demo", "loadtest", "fakes", "watch"}
GOOD_STATES = {"ok", "agree"}
LEVELS = {"warning", "error", "exception", "critical"}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call of a method in the processor's code: where, the call, the method's name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        if place.parts[0] in OTHER_COMMANDS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{place}:{node.lineno}", node, node.func.attr


def literals(node: ast.expr) -> list[str]:
    """The fixed pieces of a text that an expression may give."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.split(r"%[a-z.0-9]+", node.value)
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return [piece for part in node.values for piece in literals(part)]
    return []


def lines_of_trouble() -> list[tuple[str, str]]:
    """Where, and a fixed piece of what is logged there."""
    found = []
    for place, call, method in calls():
        assert isinstance(call.func, ast.Attribute)
        is_logger = "log" in ast.unparse(call.func.value).lower()
        if method in LEVELS and is_logger and call.args and "levers/" not in place:
            found += [(place, piece) for piece in literals(call.args[0])]
        if method == "changed" and len(call.args) >= 2:
            states = [one for one in literals(call.args[1]) if one not in GOOD_STATES]
            found += [(place, piece) for piece in states]
            found += [(place, piece) for piece in literals(call.args[0]) if states]
    return [(place, text) for place, piece in found if len(text := piece.strip(" :→()")) > 3]


def test_every_log_line_of_trouble_is_explained() -> None:
    lines = lines_of_trouble()
    assert len(lines) > 40
    missing = [f"{place}: {text!r}" for place, text in lines if normal(text) not in PAGE]
    assert missing == []


def normal(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("state", SourceState)
def test_every_state_of_a_source_is_explained(state: SourceState) -> None:
    assert f"| {state} |" in PAGE


@pytest.mark.parametrize("lever", Lever)
def test_every_lever_is_explained(lever: Lever) -> None:
    assert f"| `{lever}` | `{{" in PAGE


def test_every_metric_that_is_named_exists() -> None:
    named = set(re.findall(r"aibrix_(?:kv|extproc|prefix_cache)_\w+", PAGE))
    exist = {
        metric._name + ("_total" if metric._type == "counter" else "")
        for metric in vars(Metrics()).values()
        if isinstance(metric, MetricWrapperBase)
    }
    assert len(named) > 25
    assert named <= exist


SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_variable_that_the_pages_name_exists() -> None:
    named = set(re.findall(r"AIBRIX_[A-Z_]+[A-Z]", PAGE + SECURITY))
    assert len(named) > 20
    assert named <= set(variables())


def test_the_network_policy_opens_the_ports_that_are_the_defaults() -> None:
    found = re.search(r"```yaml\n(.*?)```", SECURITY, re.DOTALL)
    assert found is not None
    policy = yaml.safe_load(textwrap.dedent(found[1]))
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    selector = policy["spec"]["podSelector"]["matchExpressions"]
    assert selector == [{"key": MODEL_LABEL, "operator": "Exists"}]
    processors, gateway = policy["spec"]["ingress"]
    ports = [port["port"] for port in processors["ports"]]
    assert Settings().kv_event_port in ports
    assert [port["port"] for port in gateway["ports"]] == [8000]
