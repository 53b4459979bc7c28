"""The same trace in Dynamo 1.6.1's own simulator and in ours, request by request."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.simulate import calibrate
from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.loop import Scenario
from aibrix_extproc.simulate.records import summarise
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.mooncake import mooncake
from tests.unit.simulate.simulated import run

DATA = Path(__file__).parents[2] / "data" / "simulator"
TRACE = DATA / "mooncake_conversation_150.jsonl"
DYNAMO: dict[str, dict[str, Any]] = json.loads((DATA / "dynamo_1.6.1.json").read_text())
TIME_TOLERANCE = 2e-3
"""Dynamo rounds the mean length of the prompts in a step to whole tokens; we do not. Where requests
are preempted, a step that ends a little sooner may preempt another moment."""


@pytest.mark.parametrize("cache", DYNAMO)
def test_round_robin_reuses_what_dynamos_simulator_reuses_request_by_request(cache: str) -> None:
    dynamo = DYNAMO[cache]
    shape = EngineShape(blocks=dynamo["num_gpu_blocks"], block_size=dynamo["block_size"])
    given = Scenario("round-robin", (Polynomial(),) * dynamo["num_workers"], shape)
    found = run(given, mooncake(TRACE, speed=dynamo["arrival_speedup_ratio"]))
    ours = Counter(
        (round(r.arrived_s * 1e3, 3), r.pod, r.prompt_tokens, r.output_tokens, r.cached_tokens)
        for r in found.records
    )
    theirs = Counter((round(row[0], 3), *row[1:5]) for row in dynamo["requests"])
    assert ours == theirs
    summary = summarise(found)
    assert summary.hit_ratio == dynamo["first_admission_prefix_cache_reused_ratio"]
    assert summary.preemptions == dynamo["readmissions"]
    assert summary.ttft_s.mean * 1e3 == pytest.approx(dynamo["mean_ttft_ms"], rel=1e-4)
    assert summary.end_to_end_s.mean * 1e3 == pytest.approx(dynamo["mean_e2e_latency_ms"], rel=1e-4)


def test_round_robin_takes_as_long_as_in_dynamos_simulator() -> None:
    dynamo = DYNAMO["16384 blocks"]
    given = Scenario("round-robin", (Polynomial(),) * dynamo["num_workers"])
    found = run(given, mooncake(TRACE, speed=dynamo["arrival_speedup_ratio"]))
    times = {
        (round(r.arrived_s * 1e3, 3), r.pod, r.prompt_tokens, r.output_tokens): (
            r.first_token_s - r.arrived_s,
            r.ended_s - r.arrived_s,
        )
        for r in found.records
    }
    for at, pod, prompt, output, _, ttft_ms, end_to_end_ms in dynamo["requests"]:
        ttft_s, end_to_end_s = times[round(at, 3), pod, prompt, output]
        assert ttft_s * 1e3 == pytest.approx(ttft_ms, rel=TIME_TOLERANCE)
        assert end_to_end_s * 1e3 == pytest.approx(end_to_end_ms, rel=TIME_TOLERANCE)


def test_a_folder_without_the_traces_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate.main([str(tmp_path)]) == 2
    assert "conversation_trace.jsonl" in capsys.readouterr().err


def test_the_gate_fails_where_the_hit_ratio_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(TRACE.read_text().splitlines(keepends=True)[:40])
    for gate in calibrate.GATES:
        (tmp_path / gate.trace).write_text(lines)
    assert calibrate.main([str(tmp_path)]) == 1
    assert "FAILS" in capsys.readouterr().out
