"""The prompts of the request path, and what their tokens are. Pure; shared by its processes.

A request's body is about as many bytes as asked for, its text differs from all others from the
first word on. Its "tokens" are its text's bytes, four to an id: a prefix of a text has a prefix of
the ids, nearly as a real tokenizer has it, and every process can compute them.
"""

import json
from array import array
from typing import Final

MODEL: Final = "bench"
_FILLER: Final = b"a man of words and not of deeds is like a garden full of weeds and when the "
_HEAD: Final = b'{"model":"bench","messages":[{"role":"user","content":"'
_TAIL: Final = b'"}],"max_tokens":16}'


class Bodies:
    """Bodies of one size, by number."""

    def __init__(self, size_bytes: int) -> None:
        room = size_bytes - len(_HEAD) - len(_TAIL) - 12
        self._tail = (_FILLER * (room // len(_FILLER) + 1))[:room] + _TAIL

    def body(self, number: int) -> bytes:
        """The JSON of a chat request."""
        return b"%s%011d %s" % (_HEAD, number, self._tail)

    def tokens(self, number: int) -> "array[int]":
        """Its ids ('I')."""
        text: str = json.loads(self.body(number))["messages"][0]["content"]
        return tokens_of(text.encode())


def tokens_of(text: bytes) -> "array[int]":
    """Four bytes to an id, below 2 to the 17th."""
    whole = array("I", text[: len(text) // 4 * 4])
    return array("I", [value % 131_071 for value in whole])
