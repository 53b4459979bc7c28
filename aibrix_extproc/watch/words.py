"""Names that others chose, as they may be shown. Owns what a terminal is not given."""

from typing import Final

MAX_NAME_CHARACTERS: Final = 128


def readable(text: str) -> str:
    """What an engine, a server or a recording calls something, as it may stand on a terminal.

    Control characters, which could steer the terminal, become `?`; it is no longer than
    MAX_NAME_CHARACTERS.
    """
    shown = text[:MAX_NAME_CHARACTERS]
    return "".join(one if one.isprintable() else "?" for one in shown)
