"""One data-parallel rank: the loop that steps the scheduler through time and tells the news.

Owns the pace of the steps, and who waits for which tokens. All of it runs on one event loop.
The events of a step are handed to the publisher before its tokens reach anyone, as in vLLM.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.events import (
    REPLAY_TOPIC_SINCE,
    UNHASHED_FIRST_SINCE,
    UNSIGNED_HASHES_SINCE,
    EventEncoder,
)
from aibrix_extproc.fakes.publisher import EventPublisher
from aibrix_extproc.fakes.scheduler import Finish, Generated, Request, Scheduler, Step

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Chunk:
    """Tokens that one answer gained. `index`: which of the requests given to `generate`."""

    index: int
    token_ids: list[int]
    finish: Finish | None = None


class Generation:
    """The answers of some requests as they grow. Leaving its block aborts what is unfinished.

    `async for` yields `Chunk`s until each request has ended.
    """

    def __init__(self, rank: "RankEngine", requests: Sequence[Request]) -> None:
        self._rank = rank
        self._requests = requests
        self._open = len(requests)
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue()

    def __enter__(self) -> "Generation":
        for index, request in enumerate(self._requests):
            self._rank.admit(request, index, self._chunks)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._rank.abort(self._requests)

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Chunk:
        if not self._open:
            raise StopAsyncIteration
        chunk = await self._chunks.get()
        if chunk.finish is not None:
            self._open -= 1
        return chunk


class RankEngine:
    """Scheduler, blocks and publisher of one rank, and the task that drives them."""

    def __init__(self, config: EngineConfig, rank: int, hash_seed: int) -> None:
        self.rank = rank
        version = config.version
        hasher = BlockHasher(hash_seed, config.hash_bytes, signed=version < UNSIGNED_HASHES_SINCE)
        self.blocks = BlockManager(
            config.num_blocks, config.block_size, hasher, version >= UNHASHED_FIRST_SINCE
        )
        self.scheduler = Scheduler(self.blocks, config.max_num_seqs, config.max_num_batched_tokens)
        self.publisher = _publisher(config, rank)
        self._time = config.time
        self._group = config.decode_group
        self._paused = False
        self._waiters: dict[Request, tuple[int, asyncio.Queue[Chunk]]] = {}
        self._wake = asyncio.Event()
        self._clock_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return self.scheduler.running + self.scheduler.waiting

    def start(self) -> None:
        """Begin to step; called on the loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop, end every open answer as aborted, and close the sockets."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.abort(list(self._waiters))
        if self.publisher is not None:
            await asyncio.to_thread(self.publisher.close)

    def generate(self, requests: Sequence[Request]) -> Generation:
        """Answer these requests together; use as `with rank.generate(…) as generation`."""
        return Generation(self, requests)

    def admit(self, request: Request, index: int, chunks: "asyncio.Queue[Chunk]") -> None:
        """Queue a request; its tokens go to `chunks`. Raises RuntimeError once the loop is over."""
        if self._task is None or self._task.done():
            raise RuntimeError(f"rank {self.rank} does not run")
        self._waiters[request] = (index, chunks)
        self.scheduler.add(request)
        self._wake.set()

    def abort(self, requests: Iterable[Request]) -> None:
        """End those that have not ended, and free their blocks."""
        for request in requests:
            waiter = self._waiters.pop(request, None)
            if waiter is not None:
                self.scheduler.abort(request)
                waiter[1].put_nowait(Chunk(waiter[0], [], Finish.ABORT))

    def reset(self) -> bool:
        """Clear the prefix cache; False while requests run. Announced with the next step."""
        return self.blocks.reset()

    def pause(self) -> None:
        """Take no step until `resume`; requests wait."""
        self._paused = True

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                if self._paused or not self.load:
                    self._wake.clear()
                    await self._wake.wait()
                    self._clock_s = 0.0
                else:
                    await self._step()
        except Exception:
            _LOG.exception("rank %d stopped", self.rank)
            self.abort(list(self._waiters))
            raise

    async def _step(self) -> None:
        step = self.scheduler.schedule()
        step_s = self._time.step_s(step.prefill_tokens, step.pairs, step.decoding)
        alone = step.decoding and not step.prefill_tokens and not self.scheduler.waiting
        steps = await self._pass_time(step_s, self._group if alone else 1)
        outputs = self.scheduler.complete(step)
        for _ in range(steps - 1):
            outputs += self._another_step()
        events = self.blocks.take_events()
        if self.publisher is not None:
            self.publisher.publish(events)
        self._deliver(outputs)

    def _another_step(self) -> list[Generated]:
        step: Step = self.scheduler.schedule()
        return self.scheduler.complete(step)

    async def _pass_time(self, step_s: float, steps: int) -> int:
        """Wait for as many steps, fewer where a request arrives meanwhile; how many it were.

        The clock runs on by what the steps should have taken, so that a late wake-up of the
        event loop is made good by the next step.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        start_s = self._clock_s if now_s - self._clock_s < max(step_s, 0.01) else now_s
        if steps > 1 and step_s > 0:
            self._wake.clear()
            timer = loop.call_at(start_s + steps * step_s, self._wake.set)
            await self._wake.wait()
            timer.cancel()
            begun = int((loop.time() - start_s) / step_s) + 1
            steps = max(1, min(steps, begun))
        self._clock_s = start_s + steps * step_s
        await asyncio.sleep(max(0.0, self._clock_s - loop.time()))
        return steps

    def _deliver(self, outputs: Sequence[Generated]) -> None:
        tokens: dict[Request, list[int]] = {}
        for output in outputs:
            tokens.setdefault(output.request, []).append(output.token)
        for request, token_ids in tokens.items():
            waiter = self._waiters.get(request)
            if waiter is not None:
                waiter[1].put_nowait(Chunk(waiter[0], token_ids, request.finish))
                if request.finish is not None:
                    del self._waiters[request]


def _publisher(config: EngineConfig, rank: int) -> EventPublisher | None:
    if config.kv_events_port is None:
        return None
    replay_port = config.kv_replay_port
    return EventPublisher(
        EventEncoder(config.version, rank).encode,
        host=config.host,
        port=config.kv_events_port + rank if config.kv_events_port else 0,
        replay_port=replay_port + rank if replay_port else replay_port,
        topic=config.topic,
        buffer_steps=config.buffer_steps,
        replay_names_topic=config.version >= REPLAY_TOPIC_SINCE,
    )
