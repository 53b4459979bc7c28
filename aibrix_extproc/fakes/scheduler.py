"""Which tokens of which requests the next step computes: continuous batching, without a clock.

Owns the waiting queue and the running batch of one rank. Knows no time, no HTTP and no ZMQ.
As vLLM v1 does it: running requests first, then waiting ones in order, within a budget of tokens
per step; a long prompt is computed in chunks; a request waits while its blocks do not fit; where
a running one cannot grow, the one that came last is preempted and computed again later.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aibrix_extproc.fakes.blocks import BlockManager, CachedSequence


class Finish(StrEnum):
    """Why an answer ended; the values are OpenAI's `finish_reason` and vLLM's metric label."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(slots=True, eq=False)
class Request:
    """One prompt under way. `answer` yields the ids of its answer, without an end."""

    sequence: CachedSequence
    answer: Iterator[int]
    max_tokens: int
    stop_after: int = 0
    """The answer ends by itself with this many tokens, `end_token` the last; 0: it does not."""
    end_token: int = 0
    prompt_tokens: int = field(init=False)
    generated: int = 0
    cached_tokens: int | None = None
    """Prompt tokens that were reused; None until it is admitted."""
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.sequence.tokens)

    @property
    def missing_tokens(self) -> int:
        """Tokens known but not computed: the rest of the prompt, or one while it decodes."""
        return len(self.sequence.tokens) - self.sequence.computed_tokens


@dataclass(slots=True)
class Step:
    """What one step computes. `pairs`: computed tokens times the tokens before them."""

    requests: list[Request] = field(default_factory=list)
    prefill_tokens: int = 0
    pairs: int = 0
    decoding: int = 0
    context_tokens: int = 0
    """Of the requests that decode, each with its token of this step."""

    def add(self, request: Request, tokens: int) -> None:
        """`tokens` of this request take part."""
        self.requests.append(request)
        if request.generated and tokens == 1:
            self.decoding += 1
            self.context_tokens += request.sequence.computed_tokens
        else:
            self.prefill_tokens += tokens
            before = request.sequence.computed_tokens - tokens
            self.pairs += tokens * before + tokens * tokens // 2


@dataclass(frozen=True, slots=True)
class Generated:
    """What a step added to one answer."""

    request: Request
    token: int


@dataclass(slots=True)
class Counts:
    """Totals since the start, in tokens unless said otherwise; they feed `/metrics`."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    """Requests."""
    finished: Counter[Finish] = field(default_factory=Counter)
    """Requests."""


class Scheduler:
    """The batch of one rank. Call `schedule`, let time pass, then `complete`."""

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        whole_prompt_must_fit: bool = False,
    ) -> None:
        """`whole_prompt_must_fit`: admit a request only where all of it fits, not its first chunk
        alone (newer vLLM's `scheduler_reserve_full_isl`, on by default)."""
        self._whole_prompt_must_fit = whole_prompt_must_fit
        self.blocks = blocks
        self.counts = Counts()
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    @property
    def waiting(self) -> int:
        """Requests not yet admitted, or preempted."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def batch(self) -> Sequence[Request]:
        """The requests that run now; to be read only."""
        return self._running

    @property
    def queue(self) -> Sequence[Request]:
        """The requests that wait now, the next one first; to be read only."""
        return self._waiting

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt and answer together must fit the cache."""
        self._waiting.append(request)

    def abort(self, request: Request) -> None:
        """Take a request out and free what it holds; nothing where it has ended already."""
        if request.finish is not None:
            return
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
        self._end(request, Finish.ABORT)

    def schedule(self) -> Step:
        """Choose the next step and make room for it. Empty where there is nothing to do."""
        step = Step()
        budget, preempted = self._schedule_running(step, self._budget)
        if not preempted:
            self._schedule_waiting(step, budget)
        return step

    def complete(self, step: Step) -> list[Generated]:
        """The step is computed: requests whose prompt is through have one more token each."""
        outputs = []
        for request in step.requests:
            if request.finish is not None or request.missing_tokens:
                continue
            outputs.append(Generated(request, self._generate(request)))
            if request.finish is not None:
                self._running.remove(request)
                self._end(request, request.finish)
        return outputs

    def generate_more(self, steps: int) -> None:
        """As many steps in which each request of the batch had one token more, and that was all:
        no block began or became full, no answer ended. The caller has seen to that."""
        for request in self._running:
            request.generated += steps
            request.sequence.tokens += itertools.islice(request.answer, steps)
            request.sequence.computed_tokens += steps
        self.counts.generated_tokens += steps * len(self._running)

    def _schedule_running(self, step: Step, budget: int) -> tuple[int, bool]:
        preempted = False
        index = 0
        while index < len(self._running) and budget:
            request = self._running[index]
            tokens = min(request.missing_tokens, budget)
            while not self.blocks.allocate(request.sequence, tokens):
                preempted = True
                if self._preempt_last() is request:
                    return budget, True
            step.add(request, tokens)
            budget -= tokens
            index += 1
        return budget, preempted

    def _schedule_waiting(self, step: Step, budget: int) -> None:
        while self._waiting and budget and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            reused = self.blocks.reusable(request.sequence)
            if self._whole_prompt_must_fit and not self.blocks.fits(request.sequence, reused):
                return
            cached_tokens = len(reused) * self.blocks.block_size
            tokens = min(len(request.sequence.tokens) - cached_tokens, budget)
            if not self.blocks.allocate(request.sequence, tokens, reused):
                return
            self._waiting.popleft()
            self._running.append(request)
            if request.cached_tokens is None:
                request.cached_tokens = cached_tokens
                self.counts.prefix_queries += request.prompt_tokens
                self.counts.prefix_hits += cached_tokens
            step.add(request, tokens)
            budget -= tokens

    def _preempt_last(self) -> Request:
        victim = self._running.pop()
        self.blocks.release(victim.sequence)
        self._waiting.appendleft(victim)
        self.counts.preemptions += 1
        return victim

    def _generate(self, request: Request) -> int:
        if not request.generated:
            self.counts.prompt_tokens += request.prompt_tokens
        request.generated += 1
        ends = request.generated == request.stop_after
        token = request.end_token if ends else next(request.answer)
        request.sequence.tokens.append(token)
        self.counts.generated_tokens += 1
        if ends:
            request.finish = Finish.STOP
        elif request.generated >= request.max_tokens:
            request.finish = Finish.LENGTH
        return token

    def _end(self, request: Request, finish: Finish) -> None:
        request.finish = finish
        self.blocks.release(request.sequence)
        self.counts.finished[finish] += 1
