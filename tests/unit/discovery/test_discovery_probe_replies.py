"""What is read from an engine's answers about itself."""

import json
from typing import Any

import pytest

from aibrix_extproc.discovery.pods import ListedModel, Rank
from aibrix_extproc.discovery.probe_replies import (
    MAX_NAMES,
    BadReply,
    parse_models,
    parse_sources,
)
from tests.support import data_path


def models_body(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"object": "list", "data": list(entries)}).encode()


def sources_body(**ranks: dict[str, Any]) -> bytes:
    return json.dumps({name.removeprefix("r"): rank for name, rank in ranks.items()}).encode()


def source(**fields: Any) -> dict[str, Any]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:5657",
    } | fields


def test_a_real_engine_lists_its_model_and_its_adapter() -> None:
    body = data_path("discovery/v1_models.json").read_bytes()
    assert parse_models(body) == ((ListedModel("tiny"), ListedModel("tiny-lora", "tiny")), 0)


def test_a_real_engine_names_the_ports_of_its_rank() -> None:
    body = data_path("discovery/kv_event_sources.json").read_bytes()
    assert parse_sources(body, "10.0.0.7:8000") == (
        Rank(0, "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5657"),
    )


def test_an_engine_may_list_nothing() -> None:
    assert parse_models(models_body()) == ((), 0)


def test_a_name_listed_twice_is_one() -> None:
    body = models_body({"id": "a", "parent": "b"}, {"id": "a", "parent": None})
    assert parse_models(body) == ((ListedModel("a", "b"),), 0)


def test_names_past_the_bound_empty_or_endless_are_left_out_and_counted() -> None:
    many = [{"id": f"m{i}"} for i in range(MAX_NAMES + 5)]
    models, left_out = parse_models(models_body({"id": ""}, {"id": "x" * 513}, *many))
    assert (len(models), left_out) == (MAX_NAMES, 7)
    assert models[0].id == "m0"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b"{}", b'{"data": null}', b'{"data": [{"id": 7}]}', b"\xff"),
        b'{"x": ' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_reply_that_lists_no_models_is_bad(body: bytes) -> None:
    with pytest.raises(BadReply):
        parse_models(body)


def test_ranks_are_sorted_by_number_not_by_text() -> None:
    body = sources_body(r10=source(), r2=source(endpoint="tcp://*:5559", replay_endpoint=None))
    assert parse_sources(body, "10.0.0.7:8000") == (
        Rank(2, "tcp://10.0.0.7:5559", None),
        Rank(10, "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5657"),
    )


@pytest.mark.parametrize("host", ["*", "[::]", "0.0.0.0", "127.0.0.1", "engine-0.svc"])
def test_any_host_is_replaced_by_the_pods_address(host: str) -> None:
    body = sources_body(r0=source(endpoint=f"tcp://{host}:6000", replay_endpoint=None))
    assert parse_sources(body, "[2001:db8::7]:8000") == (Rank(0, "tcp://[2001:db8::7]:6000"),)


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_kv_cache_events": False},
        {"publisher": "null"},
        {"publisher": None},
        {"endpoint": None},
        {"endpoint": "ipc:///tmp/events"},
        {"endpoint": "inproc://events"},
    ],
)
def test_a_rank_whose_events_cannot_be_reached_has_no_endpoint(fields: dict[str, Any]) -> None:
    assert parse_sources(sources_body(r0=source(**fields)), "10.0.0.7:8000") == (Rank(0),)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        sources_body(rx=source()),
        sources_body(r0=source(endpoint="tcp://*")),
        sources_body(r0=source(endpoint="tcp://*:99999")),
        sources_body(r0=source(endpoint=5557)),
        json.dumps({str(i): source() for i in range(1025)}).encode(),
        b'{"0": {"x": ' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_reply_that_names_no_ranks_is_bad(body: bytes) -> None:
    with pytest.raises(BadReply):
        parse_sources(body, "10.0.0.7:8000")
