"""Words from names: the same everywhere, one token each, shared exactly."""

from aibrix_extproc.fakes.tokenizer import WordTokenizer
from aibrix_extproc.loadtest.words import words_of
from aibrix_extproc.workloads.pieces import Piece


def test_equal_names_begin_with_equal_words_and_others_do_not() -> None:
    long, short = words_of(Piece("group 3", 500)), words_of(Piece("group 3", 20))
    assert long.startswith(short)
    assert not words_of(Piece("group 4", 500)).startswith(short)
    assert not words_of(Piece("group 3", 500), "other salt").startswith(short)


def test_a_word_is_a_token_of_the_fake_engine_and_safe_within_json() -> None:
    text = words_of(Piece("any", 3000)).decode()
    assert len(WordTokenizer().encode(text, add_special_tokens=False)) == 3000
    assert set(text) <= set(" abcdefghijklmnopqrstuvwxyz")
    assert len(set(text.split())) == 256
    assert max(map(len, text.split())) <= 6
