"""What a source held when its engine took a request, by its events: never the request's own blocks.

Traffic goes through the fake engine's scheduler and blocks, which reuse and announce as a recorded
vLLM does, and through the real index. What is compared is the engine's own count.
"""

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

import msgspec
import pytest

from aibrix_extproc.agreement.admission import (
    MAX_DECODED_BYTES,
    Admitted,
    Expected,
    TooMuch,
    admitted,
)
from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import EventEncoder
from aibrix_extproc.fakes.scheduler import Request, Scheduler
from aibrix_extproc.index import PrefixIndex

SIZE = 4
VERSION = (0, 30, 0)


@dataclass(eq=False)
class Sent:
    """A request under way, and what the index said when it was decided."""

    request: Request
    prompt: list[int]
    at: int
    held: int


@dataclass
class Engine:
    """Steps a fake engine, and applies its events `lag` batches later."""

    blocks: int = 64
    budget: int = 32
    answer: int = 6
    index: PrefixIndex = field(default_factory=PrefixIndex)
    payloads: list[bytes] = field(default_factory=list)
    applied: int = 0

    def __post_init__(self) -> None:
        hasher = BlockHasher(1)
        self.manager = BlockManager(self.blocks, SIZE, hasher)
        self.scheduler = Scheduler(self.manager, 8, self.budget)
        self.source = self.index.add_source("m")
        self._encode = EventEncoder(VERSION).encode
        self._answers = itertools.count(1_000_000)

    def send(self, prompt: list[int]) -> Sent:
        answer = self._answer()
        request = Request(CachedSequence(list(prompt)), answer, self.answer)
        held = self.index.match("m", prompt).get(self.source, 0)
        self.scheduler.add(request)
        return Sent(request, prompt, self.applied, held)

    def _answer(self) -> Iterator[int]:
        while True:
            yield next(self._answers)

    def step(self) -> None:
        self.scheduler.complete(self.scheduler.schedule())
        if events := self.manager.take_events():
            self.payloads.append(self._encode(1.0, events))

    def deliver(self, lag: int = 0) -> None:
        while self.applied < len(self.payloads) - lag:
            self.index.apply(self.source, self.payloads[self.applied])
            self.applied += 1

    def finish(self) -> None:
        while self.scheduler.running or self.scheduler.waiting:
            self.step()
        self.deliver()

    def expected(self, sent: Sent, promised: int = 0) -> Expected:
        promised = max(promised, sent.held)
        ids = array("I", sent.prompt)
        return Expected(ids, SIZE, sent.held, promised, promised)

    def since(self, sent: Sent) -> list[bytes | None]:
        return list(self.payloads[sent.at :])

    def found(self, sent: Sent, promised: int = 0) -> Admitted:
        return admitted(self.expected(sent, promised), self.since(sent))


def tokens(start: int, blocks: int, more: int = 1) -> list[int]:
    return list(range(start, start + blocks * SIZE + more))


def reused(sent: Sent) -> int:
    assert sent.request.cached_tokens is not None
    return sent.request.cached_tokens // SIZE


def test_of_a_prompt_that_nobody_had_nothing_was_held() -> None:
    engine = Engine()
    sent = engine.send(tokens(0, 5))
    engine.finish()
    assert engine.found(sent) == Admitted(0)
    # Though by now all of it is in the index.
    assert engine.index.match("m", sent.prompt)[engine.source] == 5


def test_a_prompt_in_parts_is_not_taken_for_somebody_elses() -> None:
    engine = Engine(budget=8)
    sent = engine.send(tokens(0, 9))
    engine.finish()
    assert len(engine.payloads) > 3
    assert engine.found(sent).depth == reused(sent) == 0


def test_what_was_held_and_stays_is_held() -> None:
    engine = Engine()
    engine.send(tokens(0, 5))
    engine.finish()
    sent = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    engine.finish()
    assert engine.found(sent) == Admitted(5)
    assert reused(sent) == 5


def test_what_an_earlier_request_was_promised_to_compute_counts() -> None:
    engine = Engine()
    engine.send(tokens(0, 5))
    sent = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    engine.finish()
    assert engine.found(sent, promised=5) == Admitted(5)
    assert reused(sent) == 5


def test_a_request_that_overtook_this_one_counts_though_both_were_taken_in_one_step() -> None:
    engine = Engine(budget=64)
    engine.send([*tokens(0, 5, 0), *tokens(500, 2)])
    sent = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    engine.finish()
    assert engine.found(sent).depth == reused(sent) == 5


def test_a_promise_that_was_not_kept_does_not_count() -> None:
    engine = Engine()
    sent = engine.send(tokens(0, 5))
    engine.finish()
    assert engine.found(sent, promised=3).depth == reused(sent) == 0


def test_the_end_of_an_answer_that_came_late_counts() -> None:
    engine = Engine(answer=3 * SIZE)
    first = engine.send(tokens(0, 5))
    while engine.scheduler.running or engine.scheduler.waiting:
        engine.step()
    engine.deliver(lag=1)
    turn = [*first.request.sequence.tokens, *tokens(200, 2)]
    sent = engine.send(turn)
    engine.finish()
    assert sent.held < reused(sent)
    assert engine.found(sent).depth == reused(sent)


def test_what_was_evicted_in_the_queue_does_not_count_and_is_told() -> None:
    engine = Engine(blocks=14)
    engine.send(tokens(0, 6))
    engine.finish()
    engine.send(tokens(500, 9))
    sent = engine.send([*tokens(0, 6, 0), *tokens(100, 2)])
    assert sent.held == 6
    engine.finish()
    assert reused(sent) < 6
    found = engine.found(sent)
    assert (found.depth, found.evicted) == (reused(sent), True)


def test_what_an_engine_forgot_in_silence_is_still_believed() -> None:
    engine = Engine()
    engine.send(tokens(0, 5))
    engine.finish()
    assert engine.manager.reset()
    engine.manager.take_events()
    sent = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    engine.finish()
    assert reused(sent) == 0
    assert engine.found(sent) == Admitted(5), "the index was wrong, and this must show it"


def test_what_came_before_the_tokens_were_known_is_not_counted_as_held() -> None:
    engine = Engine()
    sent = engine.send(tokens(0, 5))
    engine.finish()
    # Its own blocks are in the index when its tokens are known at last.
    late = replace(engine.expected(sent), held=5, promised=5)
    assert admitted(late, engine.since(sent), known_at=len(engine.payloads)).depth == 0


def test_a_source_emptied_by_event_sync_or_by_its_engine_held_nothing() -> None:
    engine = Engine()
    engine.send(tokens(0, 5))
    engine.finish()
    sent = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    engine.finish()
    lost: list[bytes | None] = [None, *engine.since(sent)]
    assert admitted(engine.expected(sent), lost) == Admitted(0, emptied=True)
    cleared = msgspec.msgpack.encode([1.0, [["AllBlocksCleared"]]])
    other = engine.send([*tokens(0, 5, 0), *tokens(100, 3)])
    assert admitted(engine.expected(other), [cleared, *engine.since(sent)]).depth == 0


def test_blocks_of_another_adapter_medium_or_size_are_not_of_this_prompt() -> None:
    prompt = tokens(0, 3)
    expected = Expected(array("I", prompt), SIZE, 0, 0, 0)

    def stored(first: int, end: int, **fields: object) -> bytes:
        event = {
            "type": "BlockStored",
            "block_hashes": list(range(first, end)),
            "parent_block_hash": first - 1 if first else None,
            "token_ids": prompt[first * SIZE : end * SIZE],
            "block_size": SIZE,
            **fields,
        }
        return msgspec.msgpack.encode([1.0, [event]])

    own = stored(2, 3)
    assert admitted(replace(expected, decided=2), [stored(0, 2), own]).depth == 2
    for fields in ({"lora_name": "a"}, {"medium": "CPU"}, {"group_idx": 1}, {"lora_id": 3}):
        strange = stored(0, 2, **fields)
        assert admitted(replace(expected, decided=2), [strange, own]).depth == 0


def test_more_than_may_be_looked_through_is_left_alone() -> None:
    engine = Engine()
    sent = engine.send(tokens(0, 5))
    engine.finish()
    with pytest.raises(TooMuch):
        admitted(engine.expected(sent, promised=3), [*engine.since(sent), bytes(MAX_DECODED_BYTES)])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("blocks", "budget", "apart"), [(400, 64, 0.0), (60, 64, 0.005), (60, 24, 0.015)]
)
def test_conversations_are_found_as_the_engine_counted_them(
    seed: int, blocks: int, budget: int, apart: float
) -> None:
    """Shared beginnings, full caches, long queues, preemptions, and late events.

    A step of so few tokens often has room for one block of a prompt alone, which is taken for
    somebody else's: that is all that they may be apart.
    """
    rng = Random(seed)
    engine = Engine(blocks=blocks, budget=budget)
    systems = [tokens(10_000 * (n + 1), rng.randint(2, 5), 0) for n in range(3)]
    open_turns: list[tuple[Sent, int]] = []
    histories: list[list[int]] = [list(rng.choice(systems)) for _ in range(8)]
    done: list[tuple[Sent, int]] = []
    for turn in range(120):
        if len(open_turns) < 5 and histories:
            history = histories.pop(rng.randrange(len(histories)))
            prompt = [*history, *tokens(100_000 + 100 * turn, rng.randint(1, 4), rng.randint(0, 3))]
            sent = engine.send(prompt)
            promised = max(
                (
                    min(_common(prompt, other.prompt) // SIZE, (len(prompt) - 1) // SIZE)
                    for other, _ in open_turns
                ),
                default=0,
            )
            open_turns.append((sent, promised))
        engine.step()
        engine.deliver(lag=rng.randint(0, 1))
        for one in [one for one in open_turns if one[0].request.finish is not None]:
            open_turns.remove(one)
            done.append(one)
            turns = one[0].request.sequence.tokens
            histories.append(list(turns) if len(turns) < 120 else list(rng.choice(systems)))
    engine.finish()
    found = [engine.found(sent, promised).depth for sent, promised in done]
    counted = [reused(sent) for sent, _ in done]
    blocks_sent = sum(len(sent.prompt) // SIZE for sent, _ in done)
    assert len(done) > 20
    limits = [(len(sent.prompt) - 1) // SIZE for sent, _ in done]
    found = [min(depth, limit) for depth, limit in zip(found, limits, strict=True)]
    differences = [one - other for one, other in zip(found, counted, strict=True)]
    assert set(differences) <= {0, 1}
    assert sum(differences) <= apart * blocks_sent


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
