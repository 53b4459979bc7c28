"""The load test's own stack: fake engines, a processor and a real Envoy, small."""

import sys

from aibrix_extproc.loadtest import progress
from aibrix_extproc.loadtest.campaign import Campaign, Job
from aibrix_extproc.loadtest.own_stack import EngineSizes, StackSizes
from aibrix_extproc.loadtest.runner import OpenLoop
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, shipped
from aibrix_extproc.workloads.generated import Shape, multi_turn
from tests.envoy_binary import envoy_path

SHAPE = Shape(
    sessions=16,
    rate=40.0,
    groups=2,
    prefix_tokens=320,
    turn_tokens=40,
    output_tokens=4,
    turns=3,
    think_s=0.02,
)


async def test_strategies_are_asked_the_same_and_every_figure_is_there() -> None:
    engine = EngineSizes(blocks=512, prefill_us_per_token=5.0, decode_ms_per_token=1.0)
    sizes = StackSizes(2, engine, envoy_path(), shipped(OVERRIDE_HOST))
    sessions = multi_turn(SHAPE, 3)
    job = Job(sessions, ["random", "prefix-cache"], sizes, seed=3)

    def watch(name: str, loop: OpenLoop) -> object:
        return progress.shown(name, loop, 48, sys.stderr)

    found = await Campaign(job, watch).run()  # type: ignore[arg-type]
    wanted = sorted(turn.prompt_tokens for session in sessions for turn in session.turns)
    assert [run.strategy for run in found.runs] == ["random", "prefix-cache"]
    for run in found.runs:
        assert not [request.error for request in run.requests if request.error]
        assert sorted(request.prompt_tokens for request in run.requests) == wanted
        assert {request.answer_tokens for request in run.requests} == {4}
        assert {request.pod for request in run.requests} <= {"pod-1", "pod-2"}
        for request in run.requests:
            assert request.first_token_s is not None
            assert request.intended_s <= request.sent_s < request.first_token_s <= request.ended_s
        first, *_, last = run.samples
        assert set(last.pods) == {"pod-1", "pod-2"}
        looked_up = [pod.queried_tokens or 0 for pod in last.pods.values()]
        assert sum(looked_up) == sum(wanted)
        assert sum(last.decisions_by_basis.values()) == len(run.requests)
        assert (first.prompt_tokens or 0) == 0
    by_name = {run.strategy: run for run in found.runs}
    reused = {
        name: sum(request.cached_tokens or 0 for request in run.requests)
        for name, run in by_name.items()
    }
    assert reused["prefix-cache"] > reused["random"]
    assert any(request.matched_tokens for request in by_name["prefix-cache"].requests)
    assert found.null_run is not None
    assert found.null_run.errors == 0
    assert found.logs == []
    assert found.model == "tiny"
