"""Commands as they stand in a page: found, and cut into words as a shell would.

Knows no program. A line that a shell would not understand is a `BadLine`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHELLS = {"sh", "bash", "shell", "console"}
"""Languages of fenced blocks that hold commands; in `console` those after `$ `."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<body>.*?)^ *```", re.M | re.S)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_FUNCTION = re.compile(r"^(\w+)\(\) *\{(.*)\}$", re.M)
_OPERATORS = {"|", "||", "&&", ";", "&", "\n", ";;", "|&"}
_REDIRECTIONS = {">", ">>", "<", "2>", "&>", ">&", "<<<"}


class BadLine(ValueError):
    """A line that no shell understands."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    words: tuple[str, ...]
    """The program and its arguments, unquoted."""
    variables: tuple[tuple[str, str], ...] = ()
    """Assignments before it; all of it where there are no words."""
    inline: bool = False
    """Named in a sentence: what is left out there is left to the reader."""
    files: tuple[str, ...] = field(default=())
    """What it is redirected to or from."""

    @property
    def program(self) -> str:
        return self.words[0] if self.words else ""

    def __str__(self) -> str:
        said = [f"{name}={value}" for name, value in self.variables] + list(self.words)
        return f"{self.page}:{self.line}: {' '.join(said)}"


@dataclass(frozen=True)
class Block:
    """A fenced block, its indentation taken away."""

    page: str
    line: int
    language: str
    body: str


def blocks(page: str, text: str) -> Iterator[Block]:
    """All fenced blocks of a page."""
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        lines = [line.removeprefix(indent) for line in match["body"].splitlines()]
        line = text.count("\n", 0, match.start("body")) + 1
        yield Block(page, line, match["language"], "\n".join(lines) + "\n")


def commands(page: str, text: str, programs: set[str]) -> Iterator[Command]:
    """The commands of a page: those of its shell blocks, and known programs within sentences."""
    for block in blocks(page, text):
        if block.language in SHELLS:
            yield from in_block(block)
    prose = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in _INLINE.finditer(prose):
        said = " ".join(match[1].split())
        line = prose.count("\n", 0, match.start()) + 1
        if said.split(" ")[0] in programs and not re.search(r"[…{}<]", said):
            for command in _cut(page, line, said):
                yield Command(page, line, command.words, command.variables, inline=True)


def in_block(block: Block) -> Iterator[Command]:
    """The commands of one block, those inside functions with them."""
    body = block.body
    if block.language == "console":
        body = "\n".join(line[2:] if line.startswith("$ ") else "" for line in body.splitlines())
    for name, inner in _FUNCTION.findall(body):
        for command in _cut(block.page, block.line, inner):
            yield Command(block.page, block.line, command.words, command.variables, inline=True)
        body = re.sub(rf"^{name}\(\).*$|^{name} .*$", "", body, flags=re.M)
    yield from _cut(block.page, block.line, body)


def _cut(page: str, line: int, text: str) -> Iterator[Command]:
    words: list[str] = []
    files: list[str] = []
    takes_file = False
    for at, word in _words(page, line, text):
        if word in _OPERATORS:
            if words:
                yield _command(page, at, words, files)
            words, files, takes_file = [], [], False
        elif word in _REDIRECTIONS:
            takes_file = True
        elif takes_file:
            files.append(word)
            takes_file = False
        else:
            words.append(word)
    if words:
        yield _command(page, line + text.rstrip("\n").count("\n"), words, files)


def _command(page: str, line: int, words: list[str], files: list[str]) -> Command:
    variables = []
    rest = words[1:] if words[0] == "export" else words
    while rest and (match := _ASSIGNMENT.fullmatch(rest[0])):
        variables.append((match[1], match[2]))
        rest = rest[1:]
    return Command(page, line, tuple(rest), tuple(variables), files=tuple(files))


def _words(page: str, line: int, text: str) -> Iterator[tuple[int, str]]:
    """Words and operators, each with the line on which it ends."""
    clean = _without_comments(text).replace("\\\n", " \r")
    lexer = shlex.shlex(clean, posix=True, punctuation_chars="|&;<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    at = line
    try:
        for word in lexer:
            yield at, "\n" if set(word) == {"\n"} else word.strip("\n") or "\n"
            at = (
                line
                + clean[: lexer.instream.tell()].count("\n")
                + clean.count("\r", 0, lexer.instream.tell())
            )
    except ValueError as error:
        raise BadLine(f"{page}:{line}: no shell understands this block: {error}") from None


def _without_comments(text: str) -> str:
    """The text without what follows a `#` that begins a word outside quotes."""
    kept: list[str] = []
    quote = ""
    skipping = False
    for before, character in zip("\n" + text, text, strict=False):
        if skipping:
            skipping = character != "\n"
        elif quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and before in " \t\n":
            skipping = True
        if not skipping:
            kept.append(character)
    return "".join(kept)


_PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "ARCHITECTURE.md",
    "docs/*.md",
    "envoy/**/*.md",
    "deploy/**/*.md",
    "core/*.md",
)


def pages(root: Path) -> dict[str, str]:
    """Every page that is checked, by its path from the root."""
    found = [path for pattern in _PAGES for path in sorted(root.glob(pattern))]
    return {str(path.relative_to(root)): path.read_text() for path in found}
