"""Token counts are found in every shape of answer, and why not where they are not."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.agreement.usage import (
    MAX_ANSWER_BYTES,
    TAIL_BYTES,
    AnswerReader,
    NoUsage,
    Usage,
)


def counts(prompt: int = 40, cached: int | None = 32) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + 3,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def whole(usage: object = None, text: str = "Hi") -> bytes:
    answer = {"id": "1", "choices": [{"message": {"content": text}}], "usage": usage or counts()}
    return json.dumps(answer).encode()


def stream(*events: object, end: str = "\n\n") -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {line}{end}" for line in lines).encode()


def read(*pieces: bytes, complete: bool = True) -> Usage | NoUsage:
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(piece)
    return reader.ended(complete=complete)


CHUNK = {"choices": [{"delta": {"content": "Hi"}}], "usage": None}
LAST = {"choices": [], "usage": counts()}


def test_a_whole_answer_has_its_usage() -> None:
    assert read(whole()) == Usage(40, 32)


@given(st.lists(st.integers(0, 400), max_size=5), st.sampled_from(["whole", "stream"]))
def test_it_does_not_matter_how_an_answer_is_cut(cuts: list[int], shape: str) -> None:
    body = whole() if shape == "whole" else stream(CHUNK, CHUNK, LAST, "[DONE]")
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(edges)]
    assert read(*pieces, b"") == Usage(40, 32)


def test_a_stream_has_it_in_its_last_event() -> None:
    first = {"choices": [], "usage": counts(cached=0)}  # continuous_usage_stats sends more
    assert read(stream(first, LAST, "[DONE]")) == Usage(40, 32)
    assert read(stream(LAST, "[DONE]", end="\r\n\r\n")) == Usage(40, 32)


def test_of_a_long_stream_only_the_end_is_kept() -> None:
    reader = AnswerReader()
    for _ in range(2_000):
        reader.feed(stream(CHUNK))
        assert len(reader._kept) <= TAIL_BYTES
    reader.feed(stream(LAST, "[DONE]"))
    assert reader.ended() == Usage(40, 32)


def test_a_text_that_speaks_of_usage_is_no_usage() -> None:
    quoting = {"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 7}'}}]}
    assert read(stream(quoting, "[DONE]")) is NoUsage.NO_USAGE
    assert read(stream(LAST, quoting, "[DONE]")) == Usage(40, 32)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (whole({"prompt_tokens": 40, "prompt_tokens_details": None}), NoUsage.NO_DETAILS),
        (whole(counts(cached=None)), NoUsage.NO_DETAILS),
        (whole({"completion_tokens": 3}), NoUsage.NO_USAGE),
        (b'{"error": {"message": "no"}}', NoUsage.NO_USAGE),
        (stream(CHUNK, "[DONE]"), NoUsage.NO_USAGE),
        (b"\x1f\x8b\x08\x00 zipped", NoUsage.UNREADABLE),
        (b'{"usage": {"prompt_tokens": "many"}}', NoUsage.UNREADABLE),
        (b'{"usage": ' + b"[" * 5000, NoUsage.UNREADABLE),
        (b"", NoUsage.UNREADABLE),
        (whole(text="x" * MAX_ANSWER_BYTES), NoUsage.TOO_LARGE),
    ],
)
def test_what_says_nothing_has_a_reason(body: bytes, why: NoUsage) -> None:
    assert read(body) is why


def test_a_body_that_was_never_sent_and_one_that_was_cut_off_are_told_apart() -> None:
    assert AnswerReader().ended() is NoUsage.NOT_SENT
    assert read(whole()[:50], complete=False) is NoUsage.UNFINISHED
    assert read(stream(CHUNK), complete=False) is NoUsage.UNFINISHED
    assert read(whole(), complete=False) == Usage(40, 32)


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    assert isinstance(read(*pieces), (Usage, NoUsage))
