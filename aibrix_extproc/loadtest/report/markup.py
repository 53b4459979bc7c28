"""Pieces of HTML, with every text from outside escaped. Pure."""

from collections.abc import Iterable
from html import escape

from aibrix_extproc.loadtest.report.words import visible


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


def text(words: object) -> Html:
    """Words as they are read, whatever they hold; markup stays what it is."""
    return words if isinstance(words, Html) else Html(escape(visible(str(words))))


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """An element. `class_` is `class`, `_` in a name is `-`; an attribute of None is left out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{join(inside)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """One after another."""
    return Html("".join(text(part) for part in parts))


def _attribute(value: object) -> str:
    return escape(visible(str(value)))
