"""The index against what a real engine said of itself, request by request."""

import pytest

from aibrix_extproc.index import reference
from tests.backends import NewIndex
from tests.recordings import payload_of, recorded

BLOCK_SIZE = 32
REQUESTS = recorded("0.32-truth/requests")
FRAMES = recorded("0.32-truth/frames")


def reused_tokens(depth: int, prompt_tokens: int) -> int:
    """An engine computes at least the last token of a prompt itself."""
    return min(depth, (prompt_tokens - 1) // BLOCK_SIZE) * BLOCK_SIZE


def predictions(index: reference.PrefixIndex) -> list[int]:
    """For each request what the index says, fed the frames that were there before it."""
    source = index.add_source("tiny")
    frames = iter(FRAMES)
    frame = next(frames, None)
    predicted = []
    for request in REQUESTS:
        while frame is not None and frame["t"] <= request["t0"]:
            applied = index.apply(source, payload_of(frame))
            assert not applied.skipped
            frame = next(frames, None)
        adapter = None if request["model"] == "tiny" else request["model"]
        tokens, salt = request["token_ids"], request["cache_salt"]
        depth = index.match("tiny", tokens, lora=adapter, cache_salt=salt).get(source, 0)
        predicted.append(reused_tokens(depth, len(tokens)))
    return predicted


def test_the_recording_holds_every_kind_of_request() -> None:
    assert len(REQUESTS) == 398
    assert {request["model"] for request in REQUESTS} == {"tiny", "tiny-lora"}
    assert {request["cache_salt"] for request in REQUESTS} == {None, "tenant-a", "tenant-b"}
    assert sum(request["cached_tokens"] > 0 for request in REQUESTS) == 80


def test_every_request_reuses_exactly_what_the_index_predicts(new_index: NewIndex) -> None:
    engine = [request["cached_tokens"] for request in REQUESTS]
    assert predictions(new_index()) == engine


@pytest.mark.parametrize("blind_to", ["copies", "salts", "adapters"])
def test_without_one_of_its_rules_the_prediction_would_be_wrong(blind_to: str) -> None:
    """The recording can tell: a set instead of counts, a key without salt or adapter, fail."""

    class Blind(reference.PrefixIndex):
        def match(self, model, tokens, *, lora=None, cache_salt=None):  # type: ignore[no-untyped-def]
            lora = None if blind_to == "adapters" else lora
            salt = None if blind_to == "salts" else cache_salt
            return super().match(model, tokens, lora=lora, cache_salt=salt)

        def apply(self, source, payload):  # type: ignore[no-untyped-def]
            applied = super().apply(source, payload)
            if blind_to == "copies":
                for shelf in self._sources[source].state.shelves.values():
                    shelf.more.clear()
            return applied

    engine = [request["cached_tokens"] for request in REQUESTS]
    wrong = sum(a != b for a, b in zip(predictions(Blind()), engine, strict=True))
    assert wrong


def test_at_the_end_the_index_holds_no_more_blocks_than_the_engine_has(new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("tiny")
    most = 0
    for frame in FRAMES:
        index.apply(source, payload_of(frame))
        most = max(most, index.stats().per_source[source])
    assert 50 < most <= 64
