"""`central`: one infinite cache that all pods share, and one queue before them.

What any pod has computed, prompts and answers, all pods hold from the end of that step on, for
good. Memory limits nothing: no request waits for blocks, none is preempted. Requests wait in one
queue, first come first served, and a pod takes from it when it begins a step: while its step has
room in tokens and requests, but no more than its share of the queue, so that one does not take what
the next would begin a moment later. An idle pod takes at once. So no pod idles while a request
waits, and nobody waits for a pod that another could replace.

The time of a step is what it is for any engine: a decode slows with its batch, as if the cache had
its usual size.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from aibrix_extproc.fakes.blocks import Block, BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import BlockHash, Event
from aibrix_extproc.fakes.scheduler import Request
from aibrix_extproc.simulate.engine import EngineShape, VirtualEngine

NAME: Final = "central"
_ANY: Final = Block(0)
"""Which block holds what plays no part."""


class SharedCache:
    """What has been computed anywhere."""

    def __init__(self) -> None:
        self.held: set[BlockHash] = set()

    def of_an_engine(self, shape: EngineShape) -> BlockManager:
        """How one engine sees it."""
        return _Shared(self.held, shape.block_size)


class _Shared(BlockManager):
    """One engine's part: what it computes in a step counts at once for itself, as in vLLM, and
    for others when the step has ended."""

    def __init__(self, held: set[BlockHash], block_size: int) -> None:
        super().__init__(2, block_size, BlockHasher(0))
        self._held = held
        self._in_step: dict[BlockHash, None] = {}

    def reusable(self, sequence: CachedSequence, start: int = 0) -> list[Block]:
        most = (len(sequence.tokens) - 1) // self.block_size
        for index in range(start, most):
            block_hash = self._hash_of(sequence, index)
            if block_hash not in self._held and block_hash not in self._in_step:
                return [_ANY] * (index - start)
        return [_ANY] * max(0, most - start)

    def fits(self, sequence: CachedSequence, reused: Sequence[Block]) -> bool:
        return True

    def allocate(
        self, sequence: CachedSequence, new_tokens: int, reused: Sequence[Block] = ()
    ) -> bool:
        size = self.block_size
        if reused:
            sequence.announced_blocks = len(reused)
        sequence.computed_tokens += len(reused) * size + new_tokens
        full = min(sequence.computed_tokens, len(sequence.tokens)) // size
        for index in range(sequence.announced_blocks, full):
            self._in_step[self._hash_of(sequence, index)] = None
        sequence.announced_blocks = max(full, sequence.announced_blocks)
        return True

    def take_events(self) -> list[Event]:
        """None: whoever shares the cache needs not be told."""
        self._held.update(self._in_step)
        self._in_step.clear()
        return []


class CentralQueue:
    """The requests that no pod has begun."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Request) -> None:
        """It has come."""
        self._waiting.append(request)

    def take(self, engine: VirtualEngine, pods: int) -> list[Request]:
        """What an engine, one of `pods`, takes with it into the step that it begins now."""
        scheduler, shape = engine.scheduler, engine.shape
        room = shape.max_num_batched_tokens
        room -= sum(request.missing_tokens for request in scheduler.batch)
        most = min(shape.max_num_seqs - scheduler.running, -(-len(self._waiting) // pods))
        taken: list[Request] = []
        while len(taken) < most and room > 0:
            request = self._waiting.popleft()
            sequence = request.sequence
            room -= len(sequence.tokens) - len(engine.blocks.reusable(sequence)) * shape.block_size
            taken.append(request)
        return taken
