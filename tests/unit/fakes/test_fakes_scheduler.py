"""Continuous batching, step by step."""

from itertools import count

from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.config import TimeModel
from aibrix_extproc.fakes.events import BlockStored
from aibrix_extproc.fakes.scheduler import Finish, Request, Scheduler, Step

SIZE = 4


def scheduler(blocks: int = 64, seqs: int = 8, budget: int = 1000) -> Scheduler:
    return Scheduler(BlockManager(blocks, SIZE, BlockHasher(1)), seqs, budget)


def request(tokens: int, start: int = 100, max_tokens: int = 4, stop_after: int = 0) -> Request:
    sequence = CachedSequence(list(range(start, start + tokens)))
    return Request(sequence, count(10_000 * start), max_tokens, stop_after, end_token=4)


def step(engine: Scheduler) -> Step:
    made = engine.schedule()
    engine.complete(made)
    return made


def run(engine: Scheduler, limit: int = 1000) -> int:
    """Steps until nothing is left."""
    for steps in range(limit):
        if not engine.running + engine.waiting:
            return steps
        step(engine)
    raise AssertionError("it does not end")


def test_the_first_token_comes_with_the_step_that_ends_the_prefill() -> None:
    engine, asked = scheduler(budget=10), request(25)
    engine.add(asked)
    generated = []
    for _ in range(3):
        step(engine)
        generated.append(asked.generated)
    assert generated == [0, 0, 1]


def test_a_chunk_is_an_event_of_its_own() -> None:
    engine = scheduler(budget=10)
    engine.add(request(25, max_tokens=1))
    run(engine)
    events = [e for e in engine.blocks.take_events() if isinstance(e, BlockStored)]
    assert [len(event.block_hashes) for event in events] == [2, 3, 1]


def test_an_answer_ends_at_its_limit() -> None:
    engine, asked = scheduler(), request(5, max_tokens=3)
    engine.add(asked)
    assert run(engine) == 3
    assert (asked.finish, asked.generated) == (Finish.LENGTH, 3)
    assert engine.blocks.used_blocks == 0


def test_an_answer_may_end_by_itself_with_the_end_token() -> None:
    engine, asked = scheduler(), request(5, max_tokens=9, stop_after=3)
    engine.add(asked)
    run(engine)
    assert (asked.finish, asked.generated, asked.sequence.tokens[-1]) == (Finish.STOP, 3, 4)


def test_requests_decode_together_while_another_is_prefilled() -> None:
    engine = scheduler()
    engine.add(request(5, max_tokens=9))
    engine.add(request(6, start=500, max_tokens=9))
    step(engine)
    engine.add(request(7, start=900, max_tokens=9))
    mixed = step(engine)
    assert (mixed.decoding, mixed.prefill_tokens, len(mixed.requests)) == (2, 7, 3)


def test_no_more_run_than_may() -> None:
    engine = scheduler(seqs=2)
    for start in (100, 300, 500):
        engine.add(request(5, start=start, max_tokens=2))
    step(engine)
    assert (engine.running, engine.waiting) == (2, 1)
    run(engine)


def test_a_request_waits_while_its_blocks_do_not_fit_and_no_one_passes_it() -> None:
    engine = scheduler(blocks=6)
    first, large, small = request(12, max_tokens=2), request(16, start=300), request(1, start=600)
    for asked in (first, large, small):
        engine.add(asked)
    step(engine)
    assert (engine.running, engine.waiting) == (1, 2)
    run(engine)
    assert {asked.finish for asked in (first, large, small)} == {Finish.LENGTH}


def test_where_one_cannot_grow_the_last_is_preempted_and_ends_well_later() -> None:
    engine = scheduler(blocks=6)
    first, last = request(8, max_tokens=8), request(8, start=300, max_tokens=8)
    engine.add(first)
    engine.add(last)
    run(engine)
    assert engine.counts.preemptions >= 1
    assert (first.generated, last.generated) == (8, 8)
    assert len(set(last.sequence.tokens)) == 16
    assert last.cached_tokens == 0
    assert engine.counts.prefix_queries == 16


def test_a_preempted_request_goes_on_before_those_that_wait() -> None:
    engine = scheduler(blocks=6)
    first, second, third = (request(8, start=start, max_tokens=8) for start in (100, 300, 500))
    for asked in (first, second, third):
        engine.add(asked)
    while not engine.counts.preemptions:
        step(engine)
    assert third.cached_tokens is None
    while third.cached_tokens is None:
        step(engine)
    assert second.sequence.blocks
    run(engine)


def test_an_equal_prompt_in_the_same_step_already_finds_its_blocks() -> None:
    engine = scheduler()
    first, second = request(9), request(9)
    engine.add(first)
    engine.add(second)
    step(engine)
    assert (first.cached_tokens, second.cached_tokens) == (0, 8)


def test_what_was_reused_is_counted_in_tokens() -> None:
    engine = scheduler()
    for tokens in (9, 12):
        engine.add(request(tokens, max_tokens=1))
        run(engine)
    counts = engine.counts
    assert (counts.prefix_queries, counts.prefix_hits) == (21, 8)
    assert (counts.prompt_tokens, counts.generated_tokens) == (21, 2)
    assert counts.finished == {Finish.LENGTH: 2}


def test_an_aborted_request_frees_its_blocks_running_or_waiting() -> None:
    engine = scheduler(seqs=1)
    running, waiting = request(9), request(9, start=300)
    engine.add(running)
    engine.add(waiting)
    under_way = engine.schedule()
    engine.abort(running)
    engine.abort(waiting)
    engine.abort(running)
    assert engine.complete(under_way) == []
    assert (engine.running, engine.waiting, engine.blocks.used_blocks) == (0, 0, 0)
    assert engine.counts.finished == {Finish.ABORT: 2}


def test_time_grows_with_the_prompt_the_pairs_and_the_batch() -> None:
    time = TimeModel(100.0, 10.0, 20.0, decode_slowing=0.5, step_ms=1.0, scale=2.0)
    assert abs(time.step_s(1000, 0, 0) - 0.202) < 1e-9
    assert abs(time.step_s(0, 1_000_000, 0) - 0.022) < 1e-9
    assert abs(time.step_s(0, 0, 1) - 0.042) < 1e-9
    assert abs(time.step_s(0, 0, 3) - 0.082) < 1e-9
    assert TimeModel().step_s(1000, 1000, 8) == 0


def test_a_chunk_attends_to_what_was_computed_before_it() -> None:
    engine = scheduler(budget=10)
    engine.add(request(20))
    assert [step(engine).pairs for _ in range(2)] == [50, 150]
