"""Decisions that are kept: how many, which, and what is shown of them."""

import json
import logging
import tracemalloc
from collections.abc import Iterator
from random import Random

import pytest

from aibrix_extproc.decisions import DecisionRecord, DecisionRing, SampledLog, recorded
from aibrix_extproc.decisions.record import TOP_CANDIDATES, rendered
from aibrix_extproc.decisions.sampled import LOGGER
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.types import Candidate, Decision, Load, Scored

PODS = [Pod("default", f"vllm-{n}", f"uid-{n}", f"10.0.0.{n}:8000", "llama") for n in range(200)]


def decision(candidates: int = 2) -> Decision:
    ranking = tuple(
        Scored(Candidate(n, PODS[n], rank=n % 2), 32 * (9 - n), Load(n, 100 * n, n), 7.5 + n)
        for n in range(candidates)
    )
    return Decision("prefix-cache", "prefix", ranking)


def record(request_id: str = "id", candidates: int = 2, shadow: bool = False) -> DecisionRecord:
    made = decision(candidates)
    return DecisionRecord(
        at_s=1_700_000_000.25,
        took_s=0.0015,
        request_id=request_id,
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        model="tales",
        prompt_tokens=400,
        tokens_known=True,
        fallback=None,
        shadow=shadow,
        candidates=len(made.ranking),
        decision=recorded(made),
    )


# -- the ring ---------------------------------------------------------------------------------


def test_what_came_since_a_record_is_all_that_follows_it_or_all_where_it_has_gone() -> None:
    ring = DecisionRing(size=3)
    assert ring.since(None) == []
    records = [record(str(number)) for number in range(5)]
    for one in records[:3]:
        ring.add(one)
    assert ring.since(None) == [records[2], records[1], records[0]]
    assert ring.since(records[0]) == [records[2], records[1]]
    assert ring.since(records[2]) == []
    for one in records[3:]:
        ring.add(one)
    assert ring.since(records[0]) == [records[4], records[3], records[2]]


def test_the_newest_comes_first_and_the_oldest_goes() -> None:
    ring = DecisionRing(size=3)
    assert ring.newest_first(10) == []
    for number in range(5):
        ring.add(record(str(number)))
    assert [one.request_id for one in ring.newest_first(10)] == ["4", "3", "2"]
    assert [one.request_id for one in ring.newest_first(2)] == ["4", "3"]


def test_a_request_is_found_by_its_id_with_each_decision_that_it_had() -> None:
    ring = DecisionRing(size=10)
    for request_id in ("a", "b", "a", "c"):
        ring.add(record(request_id))
    assert len(ring.newest_first(10, "a")) == 2
    assert len(ring.newest_first(1, "a")) == 1
    assert ring.newest_first(10, "nobody") == []


def test_a_full_ring_of_decisions_among_many_pods_stays_small() -> None:
    ring = DecisionRing(size=1_000)
    tracemalloc.start()
    for number in range(3_000):
        ring.add(record(f"{number:0128}", candidates=200))
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes < 2_000 * 1_000


# -- what is shown ----------------------------------------------------------------------------


def test_a_record_says_what_was_chosen_why_and_what_else_there_was() -> None:
    page = rendered(record(candidates=2))
    top = page.pop("top")
    assert page == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "request_id": "id",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "model": "tales",
        "pod": "default/vllm-0",
        "address": "10.0.0.0:8000",
        "rank": 0,
        "strategy": "prefix-cache",
        "reason": "prefix",
        "prompt_tokens": 400,
        "tokens_known": True,
        "reusable_tokens": 288,
        "fallback": None,
        "shadow": False,
        "took_ms": 1.5,
        "candidates": 2,
    }
    assert top[1] == {
        "pod": "default/vllm-1",
        "rank": 1,
        "score": 8.5,
        "reusable_tokens": 256,
        "load": {"requests": 1, "prefill_tokens": 100, "decoding": 1},
    }


def test_of_many_candidates_the_best_are_kept_and_all_are_counted() -> None:
    page = rendered(record(candidates=200))
    assert page["candidates"] == 200
    assert [one["pod"] for one in page["top"]] == [
        f"default/vllm-{n}" for n in range(TOP_CANDIDATES)
    ]


# -- the log ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def usual_logger() -> Iterator[None]:
    yield
    log = logging.getLogger(LOGGER)
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)


def test_every_decision_is_one_json_line_where_all_are_sampled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = SampledLog(1.0, Random(1))
    log.write(record("first"))
    log.write(record("second\nline"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["request_id"] for line in lines] == ["first", "second\nline"]
    assert {line["logger"] for line in lines} == {LOGGER}
    assert lines[0] == {"level": "INFO", "logger": LOGGER, "message": "decision"} | rendered(
        record("first")
    )


def test_a_share_of_them_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    log = SampledLog(0.25, Random(1))
    for _ in range(1_000):
        log.write(record())
    assert 200 < len(capsys.readouterr().err.splitlines()) < 300


def test_none_is_written_where_the_share_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    log = SampledLog(0.0, Random(1))
    assert not log.is_on
    log.write(record())
    assert capsys.readouterr().err == ""


def test_the_log_level_does_not_keep_them_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        SampledLog(1.0, Random(1)).write(record())
    finally:
        logging.getLogger().setLevel(before)
    assert capsys.readouterr().err.count("\n") == 1
