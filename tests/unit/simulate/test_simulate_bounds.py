"""The oracle and the central queue, by hand and against what then happens."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

import pytest

from aibrix_extproc.errors import UnknownStrategy
from aibrix_extproc.routing.strategies import STRATEGIES, build
from aibrix_extproc.routing.types import Decision, RouteContext
from aibrix_extproc.simulate.bounds.oracle import Oracle
from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.records import Run, summarise
from aibrix_extproc.simulate.scenes import PodJoins, PodRestarts
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.generated import Shape, agent, shared_prefix
from aibrix_extproc.workloads.pieces import Piece
from aibrix_extproc.workloads.sessions import Session, Turn
from tests.unit.simulate.simulated import SMALL, cached, linear, one, run, scenario

TEN_MS_A_TOKEN = (linear(prefill_us_per_token=10_000),) * 2
"""Decoding takes no time."""
TRAFFIC = Shape(
    sessions=80,
    rate=8.0,
    groups=6,
    prefix_tokens=320,
    turn_tokens=40,
    output_tokens=40,
    turns=3,
    think_s=0.5,
)


def by_hand(strategy: str, sessions: Iterable[Session], **more: object) -> Run:
    given = replace(scenario(strategy), times=TEN_MS_A_TOKEN, **more)  # type: ignore[arg-type]
    return run(given, sessions)


def ttfts(found: Run) -> list[float]:
    return [pytest.approx(r.first_token_s - r.arrived_s) for r in found.records]


# -- the oracle -----------------------------------------------------------------------------------


def test_the_oracle_waits_for_a_prefix_where_that_is_sooner_than_to_compute_it() -> None:
    first = one(0.0, "a", 20, shared=160)  # 1.80 s on a pod that holds nothing
    # In 0.3 s the first pod is free and holds the prefix: 0.3 + 0.2 s, against 1.8 s.
    waits = one(1.5, "b", 20, shared=160)
    found = by_hand("oracle", [first, waits])
    assert found.records[0].pod == found.records[1].pod
    assert ttfts(found) == [1.8, 0.5]
    # A short prefix is computed sooner elsewhere: 0.36 s against 0.3 + 0.2 s.
    short = Session(1.5, (Turn((Piece("shared", 16), Piece("own c", 20)), Piece("answer", 1)),))
    found = by_hand("oracle", [first, short])
    assert found.records[0].pod != found.records[1].pod
    assert ttfts(found) == [1.8, 0.36]


def test_the_oracle_knows_how_long_answers_are_where_memory_is_short() -> None:
    tight = EngineShape(blocks=20, block_size=16, max_num_seqs=16, max_num_batched_tokens=512)
    time = Polynomial()
    long_one, short_one = one(0.0, "long", 160, answer=100), one(0.0, "short", 160, answer=20)
    third = one(0.1, "third", 200)  # 13 of 20 blocks: fits neither before an answer has ended
    given = replace(scenario("oracle", shape=tight), times=(time, time))
    found = run(given, [long_one, short_one, third])
    pods = {record.prompt_tokens + record.output_tokens: record.pod for record in found.records}
    assert pods[201] == pods[180] != pods[260]


def test_the_oracle_sees_the_speed_of_each_pod() -> None:
    times = (Polynomial(prefill_scale=3.0), Polynomial())
    given = replace(scenario("oracle"), times=times)
    found = run(given, [one(0.0, "a", 400), one(0.001, "b", 400)])
    # The second waits for the fast one rather than take the slow one at once.
    assert [record.pod for record in found.records] == [1, 1]


def estimates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the oracle says of each request's first token, in the order of decisions."""
    seen: list[float] = []
    rank = Oracle.rank

    def watched(self: Oracle, context: RouteContext) -> Decision:
        decision = rank(self, context)
        seen.append(decision.chosen.score)
        return decision

    monkeypatch.setattr(Oracle, "rank", watched)
    return seen


def crowds(blocks: int, within_s: float) -> Iterator[tuple[EngineShape, list[Session], Session]]:
    """A pod with work of all kinds under way, and one request more."""
    for seed in range(20):
        rng = Random(seed)
        crowd = [
            Session(
                rng.uniform(0.0, within_s),
                (
                    Turn(
                        (
                            Piece(f"head {rng.randrange(3)}", rng.randrange(1, 300)),
                            Piece(f"own {n}", rng.randrange(1, 400)),
                        ),
                        Piece(f"answer {n}", rng.randrange(1, 60)),
                    ),
                ),
            )
            for n in range(rng.randrange(1, 24))
        ]
        prompt = (Piece(f"head {rng.randrange(3)}", 200), Piece("own last", rng.randrange(1, 900)))
        last = Session(rng.uniform(0.3, 1.3) * within_s, (Turn(prompt, Piece("answer last", 5)),))
        crowd = [session for session in crowd if session.start_s <= last.start_s]
        yield replace(SMALL, blocks=blocks), crowd, last


def test_the_oracles_estimate_is_what_happens_where_memory_is_ample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = estimates(monkeypatch)
    queued = 0
    for shape, crowd, last in crowds(blocks=2000, within_s=0.2):
        found = run(scenario("oracle", pods=1, shape=shape), [*crowd, last])
        record = found.records[-1]
        assert seen[-1] == pytest.approx(record.first_token_s, abs=1e-6)
        assert record.matched_tokens == record.cached_tokens
        queued += record.first_token_s - record.arrived_s > 0.1
    assert queued


def test_where_memory_is_short_the_estimate_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = estimates(monkeypatch)
    off, waited = 0.0, 0.0
    for shape, crowd, last in crowds(blocks=120, within_s=1.0):
        found = run(scenario("oracle", pods=1, shape=shape), [*crowd, last])
        record = found.records[-1]
        off += abs(seen[-1] - record.first_token_s)
        waited += record.first_token_s - record.arrived_s
    # Shared blocks are counted with the first who has them, and preemption is left out.
    assert off < 0.15 * waited


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_strategy_of_ours_has_a_sooner_first_token_than_the_oracle(seed: int) -> None:
    sessions = shared_prefix(replace(TRAFFIC, rate=25.0, sessions=200), seed)
    best = summarise(run(scenario("oracle", pods=3, seed=seed), sessions)).ttft_s.mean
    for name in ("prefix-cache", "least-request", "power-of-two"):
        assert best <= summarise(run(scenario(name, pods=3, seed=seed), sessions)).ttft_s.mean


# -- the central queue ----------------------------------------------------------------------------


def test_a_request_goes_to_the_pod_that_is_free_first() -> None:
    sessions = [one(0.0, "a", 100), one(0.0, "b", 40), one(0.1, "c", 30), one(0.2, "d", 10)]
    found = by_hand("central", sessions)
    # The pod of b is free at 0.4 s and takes its share of c and d, which is one; then the other.
    assert [record.pod for record in found.records] == [0, 1, 1, 1]
    assert ttfts(found) == [1.0, 0.4, 0.6, 0.6]


def test_what_one_pod_has_computed_all_hold_when_the_step_has_ended() -> None:
    sessions = [one(0.0, "a", 20, shared=160), one(1.0, "b", 20, shared=160)]
    sessions += [one(2.0, "c", 20, shared=160), one(2.0, "d", 20, shared=160)]
    found = by_hand("central", sessions)
    # b begins while the first pod still computes the prefix; c and d find it, on two pods.
    assert cached(found) == [0, 0, 160, 160]
    assert found.records[2].pod != found.records[3].pod or ttfts(found)[3] == 0.4


def test_the_shared_cache_never_forgets_and_memory_limits_nothing() -> None:
    tight = EngineShape(blocks=12, block_size=16, max_num_seqs=16, max_num_batched_tokens=512)
    sessions = [one(n * 0.2, f"{n}", 100, answer=60) for n in range(12)]
    again = [one(30.0 + n, f"{n}", 100, answer=1) for n in range(12)]
    found = run(scenario("central", shape=tight), [*sessions, *again])
    assert cached(found)[12:] == [96] * 12
    assert sum(pod.preemptions for pod in found.pods) == 0


def test_a_pod_takes_no_more_requests_than_it_may_run() -> None:
    narrow = replace(SMALL, max_num_seqs=1)
    sessions = [one(0.0, f"{n}", 10) for n in range(4)]
    found = by_hand("central", sessions, shape=narrow)
    assert sorted(ttfts(found), key=lambda one: one.expected) == [0.1, 0.1, 0.2, 0.2]


def test_central_reuses_what_one_infinite_cache_does_where_requests_do_not_overlap() -> None:
    sessions = [one(5.0 * n, f"{n % 3}", 100, shared=96) for n in range(9)]
    summary = summarise(run(scenario("central", bound=True), sessions))
    assert summary.hit_ratio == summary.bound_hit_ratio


def test_the_central_queue_outlives_a_pod() -> None:
    scenes = (PodRestarts(0.05, pod=0, down_s=1.0), PodJoins(0.5))
    sessions = [one(0.05 * n, f"{n}", 300, answer=40) for n in range(40)]
    found = run(scenario("central", scenes=scenes), sessions)
    assert all(record.ended_s > record.arrived_s for record in found.records)
    assert {record.pod for record in found.records} == {0, 1, 2}


def test_central_is_not_slower_than_round_robin_and_one_seed_is_one_run() -> None:
    sessions = agent(TRAFFIC, seed=2)
    found = run(scenario("central", pods=3), sessions)
    assert found.records == run(scenario("central", pods=3), sessions).records
    blind = summarise(run(scenario("round-robin", pods=3), sessions))
    assert summarise(found).ttft_s.mean < blind.ttft_s.mean


@pytest.mark.parametrize("name", ["oracle", "central", "round-robin"])
def test_the_server_knows_no_bound(name: str) -> None:
    assert name not in STRATEGIES
    with pytest.raises(UnknownStrategy):
        build(name, router_settings({}, events=True), Random(1))
