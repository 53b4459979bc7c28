"""The block manager beside a real vLLM 0.32.0: the truth, step by step of the engine.

Each step's requests are played to it, and every batch is compared as `event_pairs` does.
"""

from collections.abc import Sequence
from itertools import count

import pytest

from aibrix_extproc.fakes.blocks import Adapter, BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import EventEncoder
from tests.contract.event_pairs import SIZE, UNKNOWN, Chains, Map, Pairs, events_of
from tests.recordings import payload_of, recorded


class TruthPlayer:
    """Plays the recorded requests to a block manager and compares every batch on the way.

    The recording does not tell how long the answers were: a request decodes for as long as the
    next recorded batch is one that decoding explains.
    """

    def __init__(self, frames: Sequence[Map], unhashed_first: bool) -> None:
        self.batches = [events_of(payload_of(frame)) for frame in frames]
        self.at = 0
        self._chains = Chains(frames)
        self._blocks = BlockManager(64, SIZE, BlockHasher(5), unhashed_first)
        self._encoder = EventEncoder((0, 32, 0))
        self._pairs = Pairs()
        self._unknown = count(UNKNOWN)

    def play(self, request: Map, following: Map | None) -> int:
        """One request of the recording; the tokens that the block manager reused for it."""
        if self._cleared_next():
            assert self._blocks.reset()
        if (event := self._unlisted(request)) is not None:
            self._play_unlisted(event)
        adapter = Adapter("tiny-lora", 1) if request["model"] == "tiny-lora" else None
        return self._run(request["token_ids"], adapter, request["cache_salt"], following)

    def _run(
        self,
        tokens: Sequence[int],
        adapter: Adapter | None,
        salt: str | None,
        following: Map | None,
    ) -> int:
        sequence = CachedSequence(list(tokens), adapter, salt)
        reused = self._blocks.reusable(sequence)
        cached = len(reused) * SIZE
        assert self._blocks.allocate(sequence, len(tokens) - cached, reused)
        self._compare()
        while (answer := self._decodes(sequence, following)) is not None:
            for _ in range(SIZE + 1):
                sequence.tokens.append(answer.pop(0) if answer else next(self._unknown))
                assert self._blocks.allocate(sequence, 1)
                if self._compare():
                    break
            else:
                pytest.fail("a whole block was decoded, and nothing happened")
        self._blocks.release(sequence)
        return cached

    def _compare(self) -> bool:
        events = self._blocks.take_events()
        if events:
            self._pairs.compare(self.batches[self.at], events_of(self._encoder.encode(0.0, events)))
            self.at += 1
        return bool(events)

    def _next_stored(self, at: int) -> Map | None:
        batch = self.batches[at] if at < len(self.batches) else []
        return next((event for event in batch if event["type"] == "BlockStored"), None)

    def _cleared_next(self) -> bool:
        batch = self.batches[self.at] if self.at < len(self.batches) else [{"type": ""}]
        return bool(batch[0]["type"] == "AllBlocksCleared")

    def _decodes(self, sequence: CachedSequence, following: Map | None) -> list[int] | None:
        """The next tokens of its answer where the next batch is its own, else None."""
        if self.at >= len(self.batches) or self._cleared_next():
            return None
        stored = self._next_stored(self.at)
        only_removes = stored is None
        if only_removes:
            stored = self._next_stored(self.at + 1)
        if stored is not None and stored["token_ids"] != new_blocks(following):
            full = len(sequence.tokens) // SIZE
            parent = sequence.hashes[full - 1] if full else None
            begun = sequence.tokens[full * SIZE :]
            tokens = stored["token_ids"]
            goes_on = self._pairs.ours(stored["parent_block_hash"]) == parent
            if goes_on and (full or begun) and tokens[: len(begun)] == begun:
                return list(tokens[len(begun) : SIZE])
        return [] if only_removes else None

    def _unlisted(self, request: Map) -> Map | None:
        """The event of a request that the recording left out, where the next batch is its."""
        stored = self._next_stored(self.at)
        new = new_blocks(request)
        return stored if stored is not None and new and stored["token_ids"] != new else None

    def _play_unlisted(self, event: Map) -> None:
        adapter = Adapter("tiny-lora", 1) if event["lora_name"] else None
        last = event["block_hashes"][-1]
        self._run(self._chains.tokens(last), adapter, self._chains.salt(last), None)


def new_blocks(request: Map | None) -> list[int] | None:
    """The tokens of the blocks that a request stores, by what the engine says it reused."""
    if request is None:
        return None
    tokens = request["token_ids"]
    return list(tokens[request["cached_tokens"] : len(tokens) // SIZE * SIZE])


def play_all(unhashed_first: bool) -> tuple[list[int], TruthPlayer]:
    """Play the whole recording; what was reused, request by request."""
    requests, frames = recorded("0.32-truth/requests"), recorded("0.32-truth/frames")
    player = TruthPlayer(frames, unhashed_first)
    pairs = zip(requests, [*requests[1:], None], strict=True)
    return [player.play(request, following) for request, following in pairs], player


def test_the_block_manager_reuses_stores_and_evicts_what_the_real_engine_did() -> None:
    cached, player = play_all(unhashed_first=True)
    requests = recorded("0.32-truth/requests")
    assert cached == [request["cached_tokens"] for request in requests]
    assert len(cached) == 398
    assert player.at == len(player.batches) == 733


def test_the_order_of_eviction_before_0_24_is_not_that_of_0_32() -> None:
    with pytest.raises(AssertionError):
        play_all(unhashed_first=False)
