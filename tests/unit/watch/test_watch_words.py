"""Names of others, as they may stand on a terminal."""

from aibrix_extproc.watch.words import MAX_NAME_CHARACTERS, readable


def test_a_name_steers_no_terminal_and_fills_none() -> None:
    assert readable("a\x1b[2J\u202eb\ud800\nc é") == "a?[2J?b??c é"
    assert readable("x" * 1000) == "x" * MAX_NAME_CHARACTERS
