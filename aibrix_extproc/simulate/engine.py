"""One engine on a virtual clock: the fake engine's scheduler and block manager, step by step.

Owns when a step begins, how long it lasts and which batch of events follows it. Knows no socket,
no router and no real clock: whoever drives it gives it the time.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import EventEncoder
from aibrix_extproc.fakes.scheduler import Generated, Request, Scheduler, Step
from aibrix_extproc.simulate.timing import StepTime

_VERSION: Final = (0, 32, 0)
"""The newest vLLM whose events are recorded in `tests/data`."""
_BUFFERED: Final = 64
"""Batches that a replay can bring; vLLM keeps 10,000."""


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


class VirtualEngine:
    """One pod. `begin` a step where none is under way, then `end` it at the time that it gave."""

    def __init__(self, shape: EngineShape, time: StepTime) -> None:
        self._blocks = BlockManager(shape.blocks + 1, shape.block_size, BlockHasher(0))
        self.scheduler = Scheduler(
            self._blocks,
            shape.max_num_seqs,
            shape.max_num_batched_tokens,
            whole_prompt_must_fit=True,
        )
        self.busy_s = 0.0
        self.steps = 0
        self.prefill_tokens = 0
        self._capacity_tokens = shape.blocks * shape.block_size
        self._time = time
        self._encoder = EventEncoder(_VERSION)
        self._step: Step | None = None
        self._next_batch = 0
        self._sent: deque[Batch] = deque(maxlen=_BUFFERED)

    def add(self, request: Request) -> None:
        """Queue a request; it takes part in the next step at the soonest.

        Raises SettingsError for one that the cache could never hold.
        """
        tokens = request.prompt_tokens + request.max_tokens
        if tokens > self._capacity_tokens:
            raise SettingsError(
                f"a request of {tokens} tokens does not fit a cache of {self._capacity_tokens}: "
                "give --blocks a larger number"
            )
        self.scheduler.add(request)

    @property
    def idle(self) -> bool:
        """No step is under way, and there is none to begin."""
        return self._step is None and not self.scheduler.waiting and not self.scheduler.running

    @property
    def stepping(self) -> bool:
        """A step is under way."""
        return self._step is not None

    def begin(self, now: float) -> float:
        """Schedule the next step; when it ends. Only where there is work and none under way."""
        step = self._step = self.scheduler.schedule()
        lasts_s = self._time.step_s(step, self._capacity_tokens)
        self.busy_s += lasts_s
        self.steps += 1
        self.prefill_tokens += step.prefill_tokens
        return now + lasts_s

    def end(self, now: float) -> tuple[list[Generated], Batch | None]:
        """The step is over: a token for each request whose prompt is through, and its events."""
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError("no step is under way")
        generated = self.scheduler.complete(step)
        events = self._blocks.take_events()
        if not events:
            return generated, None
        batch = Batch(self._next_batch, self._encoder.encode(now, events), now)
        self._next_batch += 1
        self._sent.append(batch)
        return generated, batch

    def replay(self, start: int, until_s: float) -> Sequence[Batch]:
        """The last batches from number `start` on that were sent by `until_s`."""
        return [b for b in self._sent if b.sequence >= start and b.sent_s <= until_s]


def request_of(prompt: Sequence[int], answer: Sequence[int], hashes: Sequence[int]) -> Request:
    """A request whose answer is known. `hashes`: of all full blocks of prompt and answer."""
    sequence = CachedSequence(tokens=list(prompt), hashes=list(hashes))
    return Request(sequence=sequence, answer=iter(answer), max_tokens=len(answer))
