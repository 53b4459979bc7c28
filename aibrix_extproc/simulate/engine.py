"""One engine on a virtual clock: the fake engine's scheduler and block manager, step by step.

Owns when a step begins, how long it lasts and which batch of events follows it. Knows no socket,
no router and no real clock: whoever drives it gives it the time.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import EventEncoder
from aibrix_extproc.fakes.scheduler import Generated, Request, Scheduler, Step
from aibrix_extproc.simulate.timing import StepTime

_VERSION: Final = (0, 32, 0)
"""The newest vLLM whose events are recorded in `tests/data`."""
VLLM_BUFFER: Final = 10_000
"""Batches that vLLM keeps for a replay."""
_BUFFER: Final = 64
"""Enough where nobody asks from the start, and cheap."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """What an engine can hold and compute at once; tokens and requests of one step."""

    blocks: int = 16_384
    """Blocks that requests can use. vLLM reserves one more."""
    block_size: int = 64
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    """vLLM's chunked prefill: a longer prompt takes several steps."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One message of the engine's event stream."""

    sequence: int
    payload: bytes
    sent_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """What one step came to, or several that nothing happened in but one more token for each
    request of the batch."""

    generated: Sequence[Generated] = ()
    batch: Batch | None = None
    quiet_s: Sequence[float] = ()
    """When each of several quiet steps ended; `generated` is empty then."""


def paged(shape: EngineShape) -> BlockManager:
    """The cache of one engine, as vLLM has it."""
    return BlockManager(shape.blocks + 1, shape.block_size, BlockHasher(0))


class VirtualEngine:
    """One pod. `begin` a step where none is under way, then `end` it at the time that it gave.

    Most steps of an engine are quiet: they add a token to each answer, no block begins or becomes
    full, and no answer ends. Those are taken together; the times are the same.
    """

    def __init__(
        self,
        shape: EngineShape,
        time: StepTime,
        make_blocks: Callable[[EngineShape], BlockManager] = paged,
        buffer: int = _BUFFER,
    ) -> None:
        """`make_blocks`: the empty cache of a process that begins. `buffer`: batches that a replay
        can bring."""
        self.shape = shape
        self.time = time
        self.capacity_tokens = shape.blocks * shape.block_size
        """Of the KV cache."""
        self._make_blocks = make_blocks
        self.scheduler = self._empty()
        self.busy_s = 0.0
        self.prefill_tokens = 0
        self._encoder = EventEncoder(_VERSION)
        self._step: Step | None = None
        self._began_s = 0.0
        self._ends_s: list[float] = []
        """Of the steps under way; more than one only where they are quiet."""
        self._stuck = False
        """Requests wait, and the last step could admit none of them; nothing changed since."""
        self._next_batch = 0
        self._sent: deque[Batch] = deque(maxlen=buffer)

    def _empty(self) -> Scheduler:
        """What a process begins with."""
        shape = self.shape
        self.blocks = self._make_blocks(shape)
        return Scheduler(
            self.blocks,
            shape.max_num_seqs,
            shape.max_num_batched_tokens,
            whole_prompt_must_fit=True,
        )

    def restart(self, now: float) -> Sequence[Request]:
        """Another process takes this one's place: no cache, no queue, batches from number 0 on.

        Returns the requests that were not answered, first come first. Totals go on.
        """
        lost = [*self.scheduler.batch, *self.scheduler.queue]
        counts = self.scheduler.counts
        if self._ends_s:
            self.busy_s += now - self._began_s
        self.scheduler = self._empty()
        self.scheduler.counts = counts
        self._ends_s, self._step, self._stuck = [], None, False
        self._next_batch = 0
        self._sent.clear()
        return lost

    def add(self, request: Request) -> None:
        """Queue a request; it takes part in the next step at the soonest (see `cut`).

        Raises SettingsError for one that the cache could never hold.
        """
        tokens = request.prompt_tokens + request.max_tokens
        if tokens > self.capacity_tokens:
            raise SettingsError(
                f"a request of {tokens} tokens does not fit a cache of {self.capacity_tokens}: "
                "give --blocks a larger number"
            )
        self._stuck = False
        self.scheduler.add(request)

    @property
    def used(self) -> float:
        """Share of the blocks that running requests hold, 0 to 1."""
        return self.blocks.usage

    @property
    def idle(self) -> bool:
        """No step is under way, and there is none to begin."""
        return not self.stepping and not self.scheduler.waiting and not self.scheduler.running

    @property
    def stepping(self) -> bool:
        """A step is under way."""
        return bool(self._ends_s)

    def under_way(self, now: float) -> tuple[float, int]:
        """When the step under way at `now` ends, and how many quiet ones have ended by then; `now`
        and 0 where there is none."""
        ends = self._ends_s
        if not ends:
            return now, 0
        at = min(bisect_left(ends, now), len(ends) - 1)
        return ends[at], 0 if self._step is not None else at + 1

    def begin(self, now: float) -> float:
        """Begin the next step, or several quiet ones; when `end` is due.

        Only where there is work and none under way.
        """
        self._began_s = now
        quiet = self._quiet_steps()
        if quiet:
            self._ends_s = self._quiet_ends(now, quiet)
        else:
            step = self._step = self.scheduler.schedule()
            self._stuck = not step.prefill_tokens
            self.prefill_tokens += step.prefill_tokens
            self._ends_s = [now + self.time.step_s(step, self.capacity_tokens)]
        return self._ends_s[-1]

    def cut(self, now: float) -> float:
        """Take no more quiet steps than the one under way at `now`; when `end` is due."""
        ends = self._ends_s
        del ends[bisect_left(ends, now) + 1 :]
        return ends[-1]

    def end(self, now: float) -> Ended:
        """What was begun is over: a token for each request whose prompt is through, and events."""
        ends, step = self._ends_s, self._step
        if not ends:
            raise RuntimeError("no step is under way")
        self.busy_s += now - self._began_s
        self._ends_s, self._step = [], None
        if step is None:
            self.scheduler.generate_more(len(ends))
            return Ended(quiet_s=ends)
        generated = self.scheduler.complete(step)
        if any(output.request.finish is not None for output in generated):
            self._stuck = False
        events = self.blocks.take_events()
        if not events:
            return Ended(generated)
        batch = Batch(self._next_batch, self._encoder.encode(now, events), now)
        self._next_batch += 1
        self._sent.append(batch)
        return Ended(generated, batch)

    def _quiet_steps(self) -> int:
        """How many of the next steps are quiet, whatever does not arrive meanwhile."""
        batch, size = self.scheduler.batch, self.shape.block_size
        if (self.scheduler.waiting and not self._stuck) or not batch:
            return 0
        if len(batch) > self.shape.max_num_batched_tokens:
            return 0
        fewest = size
        for request in batch:
            sequence = request.sequence
            computed = sequence.computed_tokens
            within = computed % size
            if not within or not request.generated or len(sequence.tokens) - computed != 1:
                return 0
            left = min(size - 1 - within, request.max_tokens - request.generated - 1)
            if left < fewest:
                if left <= 0:
                    return 0
                fewest = left
        return fewest

    def _quiet_ends(self, now: float, steps: int) -> list[float]:
        batch = self.scheduler.batch
        step = Step(decoding=len(batch))
        step.context_tokens = sum(request.sequence.computed_tokens for request in batch)
        ends = []
        for _ in range(steps):
            step.context_tokens += step.decoding
            now += self.time.step_s(step, self.capacity_tokens)
            ends.append(now)
        return ends

    def replay(self, start: int, until_s: float) -> Sequence[Batch]:
        """The last batches from number `start` on that were sent by `until_s`."""
        return [b for b in self._sent if b.sequence >= start and b.sent_s <= until_s]


def request_of(prompt: Sequence[int], answer: Sequence[int], hashes: Sequence[int]) -> Request:
    """A request whose answer is known. `hashes`: of all full blocks of prompt and answer."""
    sequence = CachedSequence(tokens=list(prompt), hashes=list(hashes))
    return Request(sequence=sequence, answer=iter(answer), max_tokens=len(answer))
