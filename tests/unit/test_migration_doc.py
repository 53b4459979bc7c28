"""docs/migration.md names what exists here, leaves nothing of AIBrix's names out, and its patches
do what they say to AIBrix's objects.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

from aibrix_extproc import errors
from aibrix_extproc.discovery import pods
from aibrix_extproc.extproc import messages
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import IGNORED, Settings, variables

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text()
STATUS = ("same", "changed", "gone", "new")
CODE = re.compile(r"`([^`\n]+)`")


def rows(section: str) -> dict[str, tuple[str, list[str]]]:
    """Name → its status and all cells, of the table under a heading."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found: dict[str, tuple[str, list[str]]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[1] in STATUS:
            where = cells[0].split(" `")[0] if not cells[0].startswith("`") else ""
            for name in CODE.findall(cells[0]):
                found[f"{where} {name}".strip()] = (cells[1], cells)
    assert found, section
    return found


def exported() -> set[str]:
    found = [m for m in vars(Metrics()).values() if isinstance(m, MetricWrapperBase)]
    return {m._name + ("_total" if m._type == "counter" else "") for m in found}


def headers_here() -> set[str]:
    """Every header that this server reads, sets or answers with."""
    named = {v for k, v in vars(messages).items() if k.isupper() and isinstance(v, str)}
    in_errors = re.findall(
        r'"((?:x-error-[a-z-]+)|retry-after)"', Path(errors.__file__).read_text()
    )
    return named | set(messages.PREFERENCE_HEADERS) | set(in_errors)


def test_every_variable_of_aibrix_names_is_in_the_table_with_the_right_status() -> None:
    table = rows("Variables")
    expected = {name for name in variables() if not name.startswith("AIBRIX_EXTPROC_")}
    assert expected <= set(table)
    assert {name for name, (status, _) in table.items() if status != "gone"} == expected
    assert set(IGNORED) <= {name for name, (status, _) in table.items() if status == "gone"}


def test_variables_named_anywhere_on_the_page_exist_here_or_are_gone() -> None:
    gone = {name for name, (status, _) in rows("Variables").items() if status == "gone"}
    named = set(re.findall(r"\bAIBRIX_[A-Z_]+[A-Z]\b", PAGE))
    assert named - gone - set(variables()) == set()


def test_defaults_that_the_table_says_are_those_of_the_settings() -> None:
    table = rows("Variables")
    settings = Settings()
    assert f"`{settings.routing_algorithm}`" in table["ROUTING_ALGORITHM"][1][3]
    for name, value in (
        ("AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED", settings.kv_event_sync),
        ("AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER", settings.use_remote_tokenizer),
        ("AIBRIX_PREFIX_CACHE_LOCAL_ROUTER_METRICS_ENABLED", settings.decision_metrics),
    ):
        assert table[name][1][3].startswith(f"`{str(value).lower()}`")
    imbalance = table["AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT"][1][3]
    assert imbalance.startswith(f"{settings.imbalance_abs_count},")


def test_labels_that_exist_here_are_those_of_discovery() -> None:
    read = {value for name, value in vars(pods).items() if name.endswith(("_LABEL", "_ANNOTATION"))}
    table = rows("Labels and annotations")
    assert {name for name, (status, _) in table.items() if status != "gone"} == read


def test_headers_exist_here_unless_they_are_gone() -> None:
    here = headers_here()
    for name, (status, _) in rows("Headers").items():
        header = name.rpartition(" ")[2]
        assert header.lower() == header
        assert (header in here) is (status != "gone"), name


def test_every_error_header_of_this_server_is_in_the_table() -> None:
    named = {name.rpartition(" ")[2] for name in rows("Headers")}
    assert {h for h in headers_here() if h.startswith("x-error-")} <= named


def test_metrics_exist_here_unless_they_are_gone_and_so_do_their_successors() -> None:
    ours = exported()
    for name, (status, cells) in rows("Metrics").items():
        assert (name in ours) is (status != "gone"), name
        for successor in re.findall(r"`(aibrix_[a-z_]+)`", cells[3]):
            assert successor in ours, successor
    named = set(re.findall(r"\baibrix_[a-z_]+[a-z]\b", PAGE))
    gone = {name for name, (status, _) in rows("Metrics").items() if status == "gone"}
    assert named - gone - ours == set()


def test_ports_are_those_of_the_settings() -> None:
    table = rows("Ports and processes")
    settings = Settings()
    assert settings.grpc_address.endswith(":50052")
    assert table["gRPC for Envoy, 50052"][0] == "same"
    assert settings.admin_address.endswith(":8080")
    assert settings.debug_address == "127.0.0.1:8081"
    assert table["8081"][0] == "new"


# -- the patches, on AIBrix's objects as v0.6.0 has them -----------------------------------------

POLICY = "aibrix-gateway-plugins-extension-policy"
FILTER = f"envoy.filters.http.ext_proc/envoyextensionpolicy/aibrix-system/{POLICY}/extproc"
OURS = {"name": "aibrix-extproc", "port": 50052}
BEFORE: dict[str, Any] = {
    "envoyextensionpolicy": {
        "spec": {
            "targetRef": {"kind": "HTTPRoute", "name": "aibrix-reserved-router"},
            "extProc": [
                {
                    "backendRefs": [{"name": "aibrix-gateway-plugins", "port": 50052}],
                    "processingMode": {
                        "request": {"body": "Buffered"},
                        "response": {"body": "Streamed"},
                    },
                    "messageTimeout": "60s",
                }
            ],
        }
    },
    "envoypatchpolicy": {
        "spec": {
            "jsonPatches": [
                {"operation": {"value": {"typed_per_filter_config": {f"{FILTER}/0": {}}}}},
            ]
        }
    },
    "httproute": {
        "spec": {"rules": [{"backendRefs": [{"name": "aibrix-gateway-plugins", "port": 50052}]}]}
    },
}


def patches() -> list[tuple[str, str, Any]]:
    """Kind, type and content of each `kubectl patch` on the page, in order."""
    found = re.findall(
        r"kubectl patch (\w+) \S+ -n aibrix-system --type=(\w+) -p '(.*?)'", PAGE, re.S
    )
    return [(kind, how, json.loads(text)) for kind, how, text in found]


def patched(target: Any, operations: list[Any]) -> Any:
    """JSON Patch (RFC 6902): what `add` and `replace` do."""
    result = copy.deepcopy(target)
    for operation in operations:
        *path, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        at = result
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if operation["op"] == "add" and isinstance(at, list):
            at.insert(int(last), operation["value"])
        elif isinstance(at, list):
            at[int(last)] = operation["value"]
        else:
            assert operation["op"] == "add" or last in at, operation["path"]
            at[last] = operation["value"]
    return result


def merged(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7386): objects are merged, all else is replaced."""
    if not isinstance(patch, dict):
        return patch
    base = target if isinstance(target, dict) else {}
    return base | {key: merged(base.get(key), value) for key, value in patch.items()}


def test_the_page_has_the_patches_of_its_steps() -> None:
    assert [(kind, how) for kind, how, _ in patches()] == [
        ("envoyextensionpolicy", "json"),
        ("envoypatchpolicy", "json"),
        ("envoyextensionpolicy", "merge"),
        ("httproute", "json"),
    ]


def test_the_shadow_stands_first_and_the_plugin_keeps_its_number_on_aibrixs_route() -> None:
    (_, _, policy), (_, _, patch), *_ = patches()
    after = patched(BEFORE["envoyextensionpolicy"], policy)["spec"]["extProc"]
    assert [one["backendRefs"][0]["name"] for one in after] == [
        "aibrix-extproc",
        "aibrix-gateway-plugins",
    ]
    route = patched(BEFORE["envoypatchpolicy"], patch)["spec"]["jsonPatches"][0]["operation"]
    assert set(route["value"]["typed_per_filter_config"]) == {f"{FILTER}/0", f"{FILTER}/1"}


@pytest.mark.parametrize("with_shadow", [False, True])
def test_the_switch_leaves_this_server_alone_and_one_step_leads_back(with_shadow: bool) -> None:
    (_, _, shadow), _, (_, _, switch), _ = patches()
    before = BEFORE["envoyextensionpolicy"]
    start = patched(before, shadow) if with_shadow else before
    after = merged(start, switch)
    assert [one["backendRefs"] for one in after["spec"]["extProc"]] == [[OURS]]
    assert after["spec"]["targetRef"] == before["spec"]["targetRef"]
    assert after["spec"]["extProc"][0]["failOpen"] is False
    saved = {"spec": before["spec"]}  # jq '{spec}'
    assert merged(after, saved) == before


def test_the_reserved_route_is_given_a_backend_that_stays() -> None:
    *_, (_, _, patch) = patches()
    after = patched(BEFORE["httproute"], patch)
    assert after["spec"]["rules"][0]["backendRefs"] == [OURS]
