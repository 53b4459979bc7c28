"""Running processors with trouble, by their own pages; the pages are those of real parts."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from aibrix_extproc.admin.pages import readiness_page
from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.findings import Area, Finding, Severity
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.metrics import Metrics
from tests.support import free_port
from tests.unit.doctor.doctor_rig import http_engine, told

READY = readiness_page({"pods_listed": True, "first_sync_done": True}, "core")[1]
LEVERS = {"levers": {"event-sync": {"now": "on", "default": "on", "at_default": True}}}


def source(state: SourceState | None = SourceState.EXACT, **changes: Any) -> dict[str, Any]:
    view = SourceView(
        source=1,
        pod="default/a",
        rank=0,
        model="m",
        state=state,
        usable=True,
        stale=False,
        connected=True,
        sequence=7,
        lag_s=0.1,
        placements=3,
        full=False,
        pending_bytes=0,
        event_endpoint="tcp://127.0.0.1:5557",
    )
    return json.loads(json.dumps(asdict(view))) | changes  # type: ignore[no-any-return]


def metrics(picked: int = 100, passed: str = "", fallback: str = "", other: int = 0) -> str:
    counted = Metrics()
    counted.requests.labels("picked").inc(picked)
    if passed:
        counted.passed.labels(passed).inc(50)
    if fallback:
        counted.fallbacks.labels(fallback).inc(50)
    counted.picks.labels("honoured").inc(picked - other)
    counted.picks.labels("other").inc(other)
    return generate_latest(counted.registry).decode()


def warned(**page: Any) -> dict[str, Any]:
    return {"models": {"m": {"warnings": [], "tokenizers_that_differ": None} | page}}


PATIENT_S = 20.0
"""Nothing here waits for so long: a machine under load answers late, and a closed port at once."""

RIGHT: dict[str, Any] = {
    "/readyz": READY,
    "/metrics": metrics(),
    "/v1/models": {"data": [{"id": "m"}]},
    "/debug/sources": [source()],
    "/debug/agreement": warned(),
    "/debug/levers": LEVERS,
}
LOST, PARTIAL = source(SourceState.LOST), source(SourceState.PARTIAL)
MOVED = {"levers": {"shadow": {"now": "on", "default": "off", "at_default": False}}}

PAGES: list[tuple[str, Mapping[str, Any], set[str]]] = [
    ("all right", {}, set()),
    (
        "no pods yet",
        {"/readyz": readiness_page({"pods_listed": False}, "core")[1]},
        {"server-not-ready"},
    ),
    (
        "the index in plain Python",
        {"/readyz": readiness_page({}, "reference")[1]},
        {"server-index-reference"},
    ),
    ("another model", {"/v1/models": {"data": [{"id": "x"}]}}, {"server-models"}),
    ("a source that is LOST", {"/debug/sources": [LOST]}, {"server-source-not-believed"}),
    (
        "a source that is stale",
        {"/debug/sources": [source(stale=True)]},
        {"server-source-not-believed"},
    ),
    (
        "a source that hears nothing",
        {"/debug/sources": [source(SourceState.CONNECTING)]},
        {"server-source-not-believed"},
    ),
    ("a source that is PARTIAL", {"/debug/sources": [PARTIAL]}, {"server-source-not-exact"}),
    ("a full index", {"/debug/sources": [source(full=True)]}, {"server-index-full"}),
    ("a source without events", {"/debug/sources": [source(None)]}, set()),
    (
        "a broken promise",
        {"/debug/agreement": warned(warnings=[{"kind": "blocks", "pods": ["a"]}])},
        {"server-agreement"},
    ),
    (
        "other tokens",
        {"/debug/agreement": warned(tokenizers_that_differ={"in": "text", "pods": ["a"]})},
        {"server-agreement"},
    ),
    ("shadow mode", {"/debug/levers": MOVED}, {"server-lever"}),
    ("requests without a body", {"/metrics": metrics(passed="no_body")}, {"server-unpicked"}),
    ("requests for others", {"/metrics": metrics(passed="other_path")}, set()),
    ("a late tokenizer", {"/metrics": metrics(fallback="deadline")}, {"server-untokenized"}),
    ("other pods serve", {"/metrics": metrics(other=40)}, {"server-served-elsewhere"}),
    ("hardly a request", {"/metrics": metrics(picked=1, fallback="deadline")}, set()),
]


async def examine(folder: Path, **asked: str) -> list[Finding]:
    pods = folder / "pods.yaml"
    pods.write_text("pods: [{name: a, model: m, address: '127.0.0.1:1'}]")
    environment = {"AIBRIX_EXTPROC_ENDPOINTS_FILE": str(pods)}
    findings = run_checks(await collect(Asked(timeout_s=PATIENT_S, **asked), environment))
    return [f for f in findings if f.area is Area.SERVER]


@pytest.mark.parametrize(("what", "changes", "codes"), PAGES, ids=[case[0] for case in PAGES])
async def test_each_page_is_named(
    what: str, changes: Mapping[str, Any], codes: set[str], tmp_path: Path
) -> None:
    async with http_engine(RIGHT | dict(changes)) as address:
        url = f"http://{address}"
        findings = await examine(tmp_path, server=url, debug=url)
    assert set(told(findings)) == codes


async def test_a_server_that_is_away_is_named(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    findings = await examine(tmp_path, server=url, debug=url)
    assert told(findings) == {"server-unreachable": Severity.RED}
    assert len([f for f in findings if f.code == "server-unreachable"]) == 2


async def test_pages_that_were_not_asked_for_are_skipped(tmp_path: Path) -> None:
    async with http_engine(RIGHT) as address:
        findings = await examine(tmp_path, server=f"http://{address}")
    assert told(findings) == {}
    skipped = {f.subject for f in findings if f.severity is Severity.SKIPPED}
    assert skipped == {"sources", "agreement"}


@pytest.mark.parametrize("page", ["<html>", [], {"data": 1}, 7, None])
async def test_pages_of_something_else_break_nothing(page: Any, tmp_path: Path) -> None:
    async with http_engine(dict.fromkeys(RIGHT, page)) as address:
        url = f"http://{address}"
        assert await examine(tmp_path, server=url, debug=url)
