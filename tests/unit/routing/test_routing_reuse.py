"""Depth in blocks becomes tokens that need not be computed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.routing.reuse import reusable_tokens


@pytest.mark.parametrize(
    ("depth", "block_size", "prompt_tokens", "expected"),
    [
        (2, 16, 40, 32),
        (2, 16, 33, 32),
        (2, 16, 32, 16),  # a prompt of whole blocks: the last is computed again
        (1, 16, 16, 0),
        (9, 16, 40, 32),  # never more than the prompt has
        (0, 16, 40, 0),
        (3, 16, 1, 0),
    ],
)
def test_whole_blocks_are_reused_but_never_the_last_token(
    depth: int, block_size: int, prompt_tokens: int, expected: int
) -> None:
    assert reusable_tokens(depth, block_size, prompt_tokens) == expected


@pytest.mark.parametrize("block_size", [None, 0])
def test_nothing_is_reused_of_a_source_whose_block_size_is_unknown(block_size: int | None) -> None:
    assert reusable_tokens(5, block_size, 100) == 0


@pytest.mark.parametrize("prompt_tokens", [0, -1])
def test_nothing_is_reused_of_an_empty_prompt(prompt_tokens: int) -> None:
    assert reusable_tokens(5, 16, prompt_tokens) == 0


@given(st.integers(0, 99), st.integers(1, 64), st.integers(1, 2000))
def test_what_is_reused_is_whole_blocks_of_the_depth_and_leaves_a_token(
    depth: int, block_size: int, prompt_tokens: int
) -> None:
    reused = reusable_tokens(depth, block_size, prompt_tokens)
    assert reused % block_size == 0
    assert 0 <= reused <= min(depth * block_size, prompt_tokens - 1)
