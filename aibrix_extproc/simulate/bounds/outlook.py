"""When a request would have its first token on an engine, if nothing else came: worked out.

Owns the look ahead, which follows the steps of the engine's scheduler without carrying them out:
running requests first, then the queue in order, a prompt in chunks, admission where all of it fits
the free blocks. It reads the engine and changes nothing.

With ample memory it is right to a microsecond, as a test shows. Where requests wait for blocks, it
is some per cent of their wait off, for it leaves out preemption, eviction of what a request of the
queue was to reuse, and that blocks which several use are free only after the last of them. Where
nothing can be admitted before an answer ends, the steps until then are taken to last as long as the
middle one.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aibrix_extproc.fakes.blocks import Block
from aibrix_extproc.fakes.scheduler import Request, Step
from aibrix_extproc.simulate.engine import VirtualEngine


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a request in a queue will find when its turn comes, in blocks."""

    held: int
    """Leading blocks of its prompt that it need not compute."""
    revived: int = 0
    """Of these, blocks that nobody uses, so that they count as free until then."""


@dataclass(slots=True)
class _Prompt:
    """A prompt that is not computed yet, or not all of it."""

    tokens: int
    """Its length."""
    left: int
    """Tokens of it still to be computed."""
    blocks: int
    """Free ones that it takes; so many are free again when its answer has ended, and `held`."""
    answer: int
    """Tokens of the answer that are still to come."""
    held: Sequence[Block] = ()
    """Of one that runs now."""


class _Answer(NamedTuple):
    """One that decodes."""

    ends: int
    """The step after which it does."""
    number: int
    base: int
    """Its context in tokens, less the number of the step."""
    blocks: int
    """What it held when it began, or when the look did."""
    held: Sequence[Block]
    """Those of them that it holds now."""
    more: int
    """Further ones that are free again at its end, those of the answer left out."""


class Outlook:
    """What an engine will do, step by step, from the end of the step under way at `now`."""

    def __init__(self, engine: VirtualEngine, now: float) -> None:
        self._engine = engine
        self._size = engine.shape.block_size
        self._free = engine.blocks.free_blocks
        """Blocks, those that answers take from now on not yet taken off."""
        self._steps = 0
        """Since the step under way."""
        self._base = 0
        """Contexts of all that decode, in tokens, less the number of the step for each."""
        self._ends: list[_Answer] = []
        """A heap: who ends first is first."""
        self._numbers = itertools.count()
        self._running: list[_Prompt] = []
        """Prompts that are being computed."""
        self._queue: deque[_Prompt] = deque()
        self.now = self._after_step(now)
        """The next step begins then."""

    def _after_step(self, now: float) -> float:
        at_s, quiet = self._engine.under_way(now)
        for request in self._engine.scheduler.batch:
            sequence = request.sequence
            tokens, computed = len(sequence.tokens) + quiet, sequence.computed_tokens + quiet
            made = request.generated + quiet
            if computed == tokens:
                tokens, made = tokens + 1, made + 1
            if made and tokens - computed == 1:
                self._decodes(request.max_tokens - made, computed, sequence.blocks, 0)
                continue
            more = -(-tokens // self._size) - len(sequence.blocks)
            self._free -= more
            left, answer = tokens - computed, request.max_tokens - made
            self._running.append(_Prompt(tokens, left, more, answer, sequence.blocks))
        return at_s

    def _decodes(self, left: int, context: int, held: Sequence[Block], more: int) -> None:
        """From the next step on, with so many tokens to come. With none, it has ended."""
        if not left:
            self._free += more + sum(block.refs == 1 for block in held)
            return
        base = context - self._steps
        self._base += base
        blocks, number = -(-context // self._size), next(self._numbers)
        answer = _Answer(self._steps + left, number, base, blocks, held, more)
        heapq.heappush(self._ends, answer)

    def queue(self, waiting: Iterable[tuple[Request, Reuse]]) -> None:
        """These follow, in their order."""
        for request, reuse in waiting:
            tokens = len(request.sequence.tokens)
            blocks = -(-tokens // self._size) - reuse.held + reuse.revived
            left = tokens - reuse.held * self._size
            answer = request.max_tokens - request.generated
            self._queue.append(_Prompt(tokens, left, blocks, answer))

    def last_first_token_s(self) -> float:
        """When the last of the queue, which must hold one, has its first token."""
        engine, own = self._engine, self._queue[-1]
        while True:
            self._steps += 1
            step = self._next_step()
            if not step.prefill_tokens:
                self._until_an_answer_ends(step)
                continue
            self.now += engine.time.step_s(step, engine.capacity_tokens)
            if not own.left:
                return self.now
            self._step_ended()

    def _next_step(self) -> Step:
        decoding = len(self._ends)
        step = Step(decoding=decoding, context_tokens=self._base + decoding * self._steps)
        budget = self._engine.shape.max_num_batched_tokens - decoding
        for prompt in self._running:
            budget -= _chunk(step, prompt, budget)
        while self._queue and budget > 0 and self._admits(self._queue[0]):
            prompt = self._queue.popleft()
            self._free -= prompt.blocks
            self._running.append(prompt)
            budget -= _chunk(step, prompt, budget)
        return step

    def _admits(self, prompt: _Prompt) -> bool:
        running = len(self._ends) + len(self._running)
        if not running:
            return True
        if running >= self._engine.shape.max_num_seqs:
            return False
        spare = self._free - prompt.blocks
        return spare >= len(self._ends) * (1 + self._steps // self._size) or spare >= self._grown()

    def _grown(self) -> int:
        """Blocks that the answers under way have taken meanwhile, this step's included."""
        size, steps = self._size, self._steps
        return sum(-(-(one.base + steps) // size) - one.blocks for one in self._ends)

    def _until_an_answer_ends(self, step: Step) -> None:
        """Nothing can be admitted before: all steps until then at once."""
        steps = self._ends[0].ends - self._steps
        step.context_tokens += step.decoding * steps // 2
        lasts_s = self._engine.time.step_s(step, self._engine.capacity_tokens)
        self.now += (steps + 1) * lasts_s
        self._steps += steps
        self._step_ended()

    def _step_ended(self) -> None:
        while self._ends and self._ends[0].ends <= self._steps:
            answer = heapq.heappop(self._ends)
            self._base -= answer.base
            self._free += answer.more + sum(block.refs == 1 for block in answer.held)
        through = [prompt for prompt in self._running if not prompt.left]
        if through:
            self._running = [prompt for prompt in self._running if prompt.left]
            for prompt in through:
                self._decodes(prompt.answer - 1, prompt.tokens, prompt.held, prompt.blocks)


def _chunk(step: Step, prompt: _Prompt, budget: int) -> int:
    """As much of the prompt as the step has room for; how much."""
    tokens = min(prompt.left, max(0, budget))
    before = prompt.tokens - prompt.left
    step.prefill_tokens += tokens
    step.pairs += tokens * before + tokens * tokens // 2
    prompt.left -= tokens
    return tokens
