"""What each program's commands are held against. To teach it another program, or another option:

- a program that may stand in the docs gets a function here or in one of the modules beside this
  (`doc_checks_http`, `doc_checks_deploy`), decorated `@checks("name")`; it takes a `Command` and
  yields a sentence for everything that is wrong with it;
- programs that need no check are in `HARMLESS`;
- an option is added to the table of its program, with the number of words that it takes.
"""

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from aibrix_extproc import cli
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.watch import options as watch
from aibrix_extproc.watch.sources import parse_targets
from tests.unit.docs_commands import doc_facts as facts
from tests.unit.docs_commands.doc_facts import ROOT
from tests.unit.docs_commands.doc_shell import Command

Problems = Iterator[str]
Check = Callable[[Command], Problems]
CHECKS: dict[str, Check] = {}
HARMLESS = {
    "echo",
    "grep",
    "head",
    "tail",
    "jq",
    "sleep",
    "cd",
    "mkdir",
    "cat",
    "export",
    "sed",
    "sort",
} | {"uniq", "wc"}
HOW_TO_TEACH = "teach it: tests/unit/docs_commands/doc_checks.py says how"


def checks(*names: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return register


def problems(command: Command) -> list[str]:
    """Everything that is wrong with a command."""
    found = list(_variables(command)) + list(_redirections(command))
    if not command.words:
        return found
    check = CHECKS.get(Path(command.program).name)
    if check is not None:
        found += check(command)
    elif command.program not in HARMLESS:
        found.append(f"the program {command.program!r} is not known here; {HOW_TO_TEACH}")
    return found


def _variables(command: Command) -> Problems:
    for name, _value in command.variables:
        if name not in facts.known_variables():
            yield f"nothing reads the variable {name}"


def _redirections(command: Command) -> Problems:
    for name in command.files:
        folder = Path(name).parent
        if name.startswith("/dev/") or name.startswith("&") or str(folder) == ".":
            continue
        if not (ROOT / folder).exists():
            yield f"there is no folder {folder}"


def is_json(text: str) -> Problems:
    """A problem where a text is no JSON; one with a variable of the shell in it may be."""
    if "$" not in text:
        try:
            json.loads(text)
        except ValueError as error:
            yield f"the body is no JSON: {error}"


def exists(name: str, what: str = "file or folder") -> Problems:
    """A problem where a path of this repository is not there."""
    if not (ROOT / name).exists():
        yield f"there is no {what} {name}"


def split_options(
    words: Iterable[str], known: dict[str, int], program: str
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Options with their first values, what else there is, and problems.

    `known`: option → how many words it takes.
    """
    given, rest, wrong = [], [], []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return given, rest + queue, wrong
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        letters = [f"-{letter}" for letter in word[1:]]
        if word not in known and len(letters) > 1 and set(letters) <= set(known):
            queue = letters + queue  # -si is -s -i
            continue
        name, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in known:
            wrong.append(f"{program} has no option {name}, as far as is known here; {HOW_TO_TEACH}")
            continue
        taken = [value] if joined else [queue.pop(0) for _ in range(min(known[name], len(queue)))]
        given.append((name, taken[0] if taken else ""))
    return given, rest, wrong


# -- this repository's own ------------------------------------------------------------------------


@checks("make")
def check_make(command: Command) -> Problems:
    for word in command.words[1:]:
        name, is_variable, value = word.partition("=")
        if not is_variable:
            error = facts.make_says(word)
            if error:
                yield error
        elif name not in facts.make_variables():
            yield f"the Makefile reads no variable {name}"
        elif name == "BENCH":
            yield from _bench_options(command.words[1], value)


def _bench_options(target: str, value: str) -> Problems:
    module = target.removeprefix("bench-").replace("-", "_")
    for option in re.findall(r"--[\w-]+", value):
        if not facts.benchmark_names(module, option):
            yield f"benchmarks.{module} has no option {option}"
    for words in re.findall(r"--only (\S+)", value):
        for word in words.split(","):
            if not facts.benchmark_names(module, word):
                yield f"benchmarks.{module} knows no {word}"


@checks("aibrix-extproc")
def check_own(command: Command) -> Problems:
    arguments = list(command.words[1:])
    if command.inline and len(arguments) <= 1:
        if arguments and arguments[0] not in commands_of_cli() | {"--version", "--help"}:
            yield f"aibrix-extproc has no command {arguments[0]!r}"
        return
    said = StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            parsed = cli._parser().parse_args(arguments)
    except SystemExit as error:
        if error.code:
            yield said.getvalue().strip().splitlines()[-1]
        return
    if parsed.command == "watch":
        try:
            watch._check(parsed)
            parse_targets(parsed.sources)
        except SettingsError as error:
            yield str(error)


def commands_of_cli() -> set[str]:
    parser = cli._parser()
    actions = [action for action in parser._actions if action.dest == "command"]
    return set(actions[0].choices or ())


@checks("python", "python3")
def check_python(command: Command) -> Problems:
    words = command.words[1:]
    if command.inline and not words:
        return
    if words[:1] != ("-m",) or len(words) < 2:
        yield f"only python -m MODULE is known here; {HOW_TO_TEACH}"
        return
    if words[1].split(".")[0] in {"dynamo"}:
        return  # another project's, in a comparison with it
    if importlib.util.find_spec(words[1]) is None:
        yield f"there is no module {words[1]}"
    for word in words[2:]:
        if "/" in word and not word.startswith("-"):
            yield from exists(word)


@checks("pytest")
def check_pytest(command: Command) -> Problems:
    known = {"-k": 1, "-n": 1, "-m": 1, "-q": 0, "-x": 0, "--dist": 1, "--durations": 1}
    known |= dict.fromkeys(own_pytest_options(), 1)
    _given, rest, wrong = split_options(command.words[1:], known, "pytest")
    yield from wrong
    for path in rest:
        yield from exists(path.partition("::")[0])


def own_pytest_options() -> set[str]:
    """Options that a conftest here adds."""
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        if "addoption" in (text := path.read_text()):
            found |= set(re.findall(r"\"(--[a-z-]+)\"", text))
    return found


@checks("pip")
def check_pip(command: Command) -> Problems:
    known = {"-q": 0, "--no-deps": 0, "-e": 1, "--constraint": 1, "-c": 1, "--wheel-dir": 1}
    given, rest, wrong = split_options(command.words[1:], known, "pip")
    yield from wrong
    if rest[:1] and rest[0] not in ("install", "wheel"):
        yield f"pip {rest[0]} is not known here; {HOW_TO_TEACH}"
    for name, value in given:
        if name in ("--constraint", "-c", "--wheel-dir", "-e"):
            yield from exists(value)
    for target in rest[1:]:
        if target != "." and not re.fullmatch(r"[\w.-]+(\[\w+\])?", target):
            yield from exists(target)


@checks("cargo")
def check_cargo(command: Command) -> Problems:
    if command.words[1:2] and command.words[1] not in ("test", "build", "clippy", "fmt"):
        yield f"cargo {command.words[1]} is not known here; {HOW_TO_TEACH}"
