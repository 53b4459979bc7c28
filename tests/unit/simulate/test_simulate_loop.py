"""The virtual clock: order, repeatability, and what queueing theory says of it."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.simulate.engine import EngineShape, VirtualEngine
from aibrix_extproc.simulate.loop import Scenario
from aibrix_extproc.simulate.records import Run, summarise
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.generated import Shape, agent, multi_turn, shared_prefix
from aibrix_extproc.workloads.sessions import Session
from tests.unit.simulate.simulated import SMALL, cached, linear, one, run, scenario

ONE_AT_A_TIME = EngineShape(blocks=50, block_size=16, max_num_seqs=1)
TRAFFIC = Shape(
    sessions=60,
    rate=20.0,
    groups=8,
    prefix_tokens=320,
    turn_tokens=40,
    output_tokens=30,
    turns=3,
    think_s=0.5,
)


@pytest.mark.parametrize("strategy", ["prefix-cache", "prefix-cache-classic", "random"])
def test_one_seed_is_one_run(strategy: str) -> None:
    sessions = agent(TRAFFIC, seed=3)
    first, again, other = (
        run(scenario(strategy, pods=3, seed=seed), sessions) for seed in (1, 1, 2)
    )
    assert first.records == again.records
    assert first.gaps == again.gaps
    assert [r.pod for r in first.records] != [r.pod for r in other.records]


@pytest.mark.parametrize("blocks", [2000, 70])
def test_quiet_steps_taken_together_are_those_taken_one_by_one(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = replace(SMALL, blocks=blocks)
    sessions = agent(replace(TRAFFIC, output_tokens=90), seed=4)
    together = run(scenario("prefix-cache", shape=shape), sessions)
    monkeypatch.setattr(VirtualEngine, "_quiet_steps", lambda self: 0)
    one_by_one = run(scenario("prefix-cache", shape=shape), sessions)
    assert together.records == one_by_one.records
    assert together.gaps == one_by_one.gaps
    assert [pod.preemptions for pod in together.pods] == [p.preemptions for p in one_by_one.pods]
    assert any(pod.preemptions for pod in together.pods) == (blocks == 70)


def test_a_lone_request_takes_the_time_of_its_steps() -> None:
    time = Polynomial()
    found = run(scenario(pods=1), [one(1.0, "a", tokens=1000, answer=3)])
    (record,) = found.records
    chunks_s = [
        time.prefill_ms / 1e3
        + tokens * time.prefill_us_per_token / 1e6
        + tokens**2 * time.prefill_ns_per_square / 1e9
        for tokens in (512, 488)
    ]
    assert record.first_token_s - 1.0 == pytest.approx(sum(chunks_s))
    decodes_s = []
    for context in (1001, 1002):
        fill = context / (SMALL.blocks * SMALL.block_size)
        ms = time.decode_ms + fill * time.decode_fill_ms - fill**2 * time.decode_fill_square_ms
        decodes_s.append(ms / 1e3)
    assert record.ended_s - record.first_token_s == pytest.approx(sum(decodes_s))


def test_decode_slows_with_the_batch_and_prefill_holds_it_up() -> None:
    alone = run(scenario(pods=1), [one(0.0, "a", 64, answer=60)])
    crowd = [one(0.0, f"{n}", 64, answer=60) for n in range(12)]
    together = run(scenario(pods=1), crowd)
    assert summarise(together).inter_token_s.p50 > summarise(alone).inter_token_s.p50
    disturbed = run(scenario(pods=1), [one(0.0, "a", 64, answer=60), one(0.1, "b", 512)])
    gap_s = max(disturbed.gaps) * 1e-5
    assert gap_s > 2 * summarise(alone).inter_token_s.p99


def test_littles_law_holds_in_the_records() -> None:
    found = run(scenario("least-request", pods=3), multi_turn(TRAFFIC, seed=5))
    spent_s = math.fsum(record.ended_s - record.arrived_s for record in found.records)
    assert found.open_area_s == pytest.approx(spent_s, rel=1e-9)
    summary = summarise(found)
    rate = len(found.records) / found.duration_s
    assert summary.open_requests == pytest.approx(rate * summary.end_to_end_s.mean, rel=1e-9)


def waits(lengths: list[int], rate: float, seed: int) -> tuple[Run, list[float]]:
    """One server, a Poisson stream of these prompt lengths, 10 ms a token."""
    rng, at, sessions = random.Random(seed), 0.0, []
    for number, tokens in enumerate(lengths):
        at += rng.expovariate(rate)
        sessions.append(one(at, f"{seed} {number}", tokens))
    given = Scenario(
        "round-robin", (linear(prefill_us_per_token=10_000),), shape=ONE_AT_A_TIME, seed=seed
    )
    found = run(given, sessions, events=False)
    assert not sum(cached(found))
    return found, [
        r.first_token_s - r.arrived_s - r.prompt_tokens * 0.01 for r in found.records[200:]
    ]


def in_interval(means: list[float], theory: float) -> bool:
    """Whether theory lies within the 99 % interval of independent means (Student, 9 degrees)."""
    half = 3.25 * statistics.stdev(means) / math.sqrt(len(means))
    assert half < 0.2 * theory, "the interval is too wide to say anything"
    return abs(statistics.mean(means) - theory) <= half


def test_the_mean_wait_of_a_single_server_is_that_of_m_d_1() -> None:
    service_s, rate = 0.1, 5.0
    load = rate * service_s
    theory = load * service_s / (2 * (1 - load))
    means = [statistics.mean(waits([10] * 1200, rate, seed)[1]) for seed in range(10)]
    assert in_interval(means, theory)


def test_the_mean_wait_with_random_lengths_is_that_of_pollaczek_and_khinchine() -> None:
    rng, rate = random.Random(11), 5.0
    means, seconds, squares = [], [], []
    for seed in range(10):
        lengths = [rng.choice((3, 10, 20)) for _ in range(1200)]
        means.append(statistics.mean(waits(lengths, rate, seed)[1]))
    for tokens in (3, 10, 20):
        seconds.append(tokens * 0.01)
        squares.append((tokens * 0.01) ** 2)
    mean_s, square = statistics.mean(seconds), statistics.mean(squares)
    assert in_interval(means, rate * square / (2 * (1 - rate * mean_s)))


def test_two_that_arrive_together_share_the_first_step() -> None:
    found = run(scenario(pods=1), [one(0.0, "a", 64), one(0.0, "b", 64)])
    assert len({record.first_token_s for record in found.records}) == 1


def test_a_later_turn_follows_the_answer_and_the_time_to_think() -> None:
    sessions = multi_turn(replace(TRAFFIC, sessions=1), seed=1)
    found = run(scenario("prefix-cache", pods=1), sessions)
    for before, after, turn in zip(
        found.records, found.records[1:], sessions[0].turns[1:], strict=False
    ):
        assert after.arrived_s == before.ended_s + turn.think_s
        said = before.prompt_tokens + before.output_tokens
        assert after.cached_tokens == (said - 1) // SMALL.block_size * SMALL.block_size


def test_prefix_cache_finds_more_than_round_robin_and_less_than_one_infinite_cache() -> None:
    sessions = shared_prefix(replace(TRAFFIC, sessions=200), seed=2)
    ours = summarise(run(scenario("prefix-cache", pods=4, bound=True), sessions))
    blind = summarise(run(scenario("round-robin", pods=4), sessions))
    assert blind.bound_hit_ratio is None
    assert blind.predicted_hit_ratio is None
    assert ours.bound_hit_ratio is not None
    assert blind.hit_ratio < ours.hit_ratio <= ours.bound_hit_ratio


def test_events_tell_the_router_what_the_engines_evicted() -> None:
    sessions = shared_prefix(replace(TRAFFIC, sessions=100, rate=3.0), seed=2)
    tight = EngineShape(blocks=60, block_size=16, max_num_seqs=16, max_num_batched_tokens=512)
    with_events = summarise(run(scenario("prefix-cache", shape=tight), sessions))
    without = summarise(run(scenario("prefix-cache", shape=tight), sessions, events=False))
    off, off_without = (
        abs((summary.predicted_hit_ratio or 0.0) - summary.hit_ratio)
        for summary in (with_events, without)
    )
    assert off < off_without


def test_late_events_leave_the_router_with_an_older_view() -> None:
    # Apart in time by more than a prediction lasts, so that only events can tell.
    sessions = [one(10.0 * n, f"{n}", 16, shared=160) for n in range(4)]
    soon = run(scenario("prefix-cache", pods=1), sessions)
    late = run(scenario("prefix-cache", pods=1, event_delay_s=15.0), sessions)
    assert cached(soon) == cached(late) == [0, 160, 160, 160]
    assert [r.matched_tokens for r in soon.records] == [0, 160, 160, 160]
    assert [r.matched_tokens for r in late.records] == [0, 0, 160, 160]


def test_a_request_that_no_cache_could_hold_is_refused_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match="--blocks"):
        run(scenario(pods=1), [one(0.0, "a", tokens=4000)])


def test_pods_may_differ_in_speed() -> None:
    slow = Polynomial(prefill_scale=3.0)
    given = Scenario("round-robin", (Polynomial(), slow), shape=SMALL)
    found = run(given, [one(0.0, "a", 400), one(0.0, "b", 400)])
    first, second = (r.first_token_s for r in found.records)
    assert second == pytest.approx(3 * first)


def test_attention_may_cost_for_each_pair_of_tokens_reused_ones_included() -> None:
    sessions = [one(0.0, "a", 40, shared=160), one(9.0, "b", 40, shared=160)]
    plain, costly = (
        run(replace(scenario(pods=1), times=(Polynomial(prefill_ns_per_pair=pair_ns),)), sessions)
        for pair_ns in (0.0, 1000.0)
    )
    more_s = [
        after.first_token_s - before.first_token_s
        for before, after in zip(plain.records, costly.records, strict=True)
    ]
    # 200 tokens with half of those before them; then 40 with 160 before them and half of their own.
    pairs = [200 * 200 // 2, 40 * 160 + 40 * 40 // 2]
    assert more_s == [pytest.approx(1e-6 * count) for count in pairs]


def test_a_session_of_no_turn_ends_at_once() -> None:
    found = run(scenario(pods=1), [Session(0.0, ())])
    assert found.records == []
