"""Tokens that are made from names."""

from itertools import pairwise

from aibrix_extproc.simulate.tokens import block_hashes, token_ids
from aibrix_extproc.workloads.pieces import Piece


def test_a_name_is_the_same_tokens_in_every_run() -> None:
    assert token_ids([Piece("mooncake 7", 3)]).tolist() == [64_718, 38_438, 12_925]


def test_a_cut_piece_is_the_beginning_of_the_whole() -> None:
    whole = token_ids([Piece("a", 512)])
    assert token_ids([Piece("a", 100)]) == whole[:100]


def test_pieces_stand_one_after_the_other_and_names_do_not_share() -> None:
    a, b = token_ids([Piece("a", 10)]), token_ids([Piece("b", 10)])
    assert token_ids([Piece("a", 10), Piece("b", 10)]) == a + b
    assert not set(pairwise(a)) & set(pairwise(b))


def test_equal_prefixes_and_only_they_have_equal_hashes() -> None:
    head = token_ids([Piece("head", 48)])
    one = block_hashes(head + token_ids([Piece("a", 40)]), 16)
    other = block_hashes(head + token_ids([Piece("b", 32)]), 16)
    assert len(one) == len(other) == 5
    assert one[:3] == other[:3]
    assert not set(one[3:]) & set(other[3:])


def test_the_same_tokens_later_in_a_prompt_are_another_block() -> None:
    block = token_ids([Piece("a", 16)])
    assert len(set(block_hashes(block + block + block, 16))) == 3
