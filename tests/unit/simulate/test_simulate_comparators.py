"""The rules of other systems, as this project reads them, on loads worked out by hand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.types import Candidate, Load, RouteContext
from aibrix_extproc.settings import Settings
from aibrix_extproc.simulate.names import build


def ranked(
    name: str,
    loads: Sequence[Load],
    held: Mapping[int, int],
    prompt_tokens: int = 1000,
    seed: int = 1,
) -> list[int]:
    """The sources in order."""
    candidates = tuple(
        Candidate(i, Pod("default", f"pod-{i}", f"uid-{i}", f"10.0.0.{i}:8000", "m"))
        for i in range(len(loads))
    )
    context = RouteContext(prompt_tokens, True, candidates, held, dict(enumerate(loads)))
    decision = build(name, Settings(), Random(seed)).rank(context)
    assert decision.strategy == name
    for scored in decision.ranking:
        assert scored.reusable_tokens == held.get(scored.candidate.source, 0)
        assert scored.load == loads[scored.candidate.source]
    return [scored.candidate.source for scored in decision.ranking]


def test_prefix_only_takes_the_longest_prefix_however_busy_the_pod() -> None:
    swamped = Load(requests=500, prefill_tokens=10**6)
    assert ranked("prefix-only", [Load(), swamped, Load()], {0: 64, 1: 128}) == [1, 0, 2]


def test_load_only_takes_the_pod_that_owes_least_whatever_it_holds() -> None:
    loads = [Load(requests=1, prefill_tokens=900), Load(requests=1, prefill_tokens=100)]
    assert ranked("load-only", loads, {0: 960}) == [1, 0]


def test_the_overlap_cost_adds_blocks_to_prefill_and_blocks_that_are_active() -> None:
    loads = [Load(requests=2, decoding=2, context_tokens=700), Load()]
    assert ranked("overlap-cost-1", loads, {0: 640}) == [1, 0]
    assert ranked("overlap-cost-1", loads, {0: 704}) == [0, 1]


def test_with_a_credit_of_two_overlap_weighs_twice() -> None:
    loads = [Load(requests=2, decoding=2, context_tokens=700), Load()]
    assert ranked("overlap-cost-2", loads, {0: 320}) == [1, 0]
    assert ranked("overlap-cost-2", loads, {0: 384}) == [0, 1]


def test_above_temperature_0_a_dearer_pod_is_drawn_at_times() -> None:
    loads = [Load(), Load(requests=1, context_tokens=4000)]
    firsts = Counter(ranked("overlap-cost-soft", loads, {}, seed=seed)[0] for seed in range(300))
    # exp(-1 / 0.5) to 1: one in 8.4.
    assert 15 < firsts[1] < 65


def test_sticky_stays_until_the_backlog_is_too_long() -> None:
    held = {0: 640}
    assert ranked("sticky", [Load(requests=3, prefill_tokens=16_384), Load()], held) == [0, 1]
    assert ranked("sticky", [Load(requests=3, prefill_tokens=16_385), Load()], held) == [1, 0]
