"""The environment as facts: which variables can be used, and what settings they make.

Owns the reading of variables one by one, so that a bad one hides no other. What is wrong with
them is for `check_variables`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from aibrix_extproc.doctor.facts import Environment
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.kvevents.curve import load_curve_keys
from aibrix_extproc.settings import Settings, variables


def read_environment(environment: Mapping[str, str] | None = None) -> Environment:
    """What `serve` would read from these variables (default: this process's own)."""
    source = dict(os.environ if environment is None else environment)
    given = {name: source[name] for name in variables() if source.get(name, "").strip()}
    unusable = {name: why for name in given if (why := _unusable(name, given[name]))}
    settings = Settings.model_validate({n: v for n, v in given.items() if n not in unusable})
    return Environment(source, settings, unusable, _contradictions(settings))


def read_environment_file(path: Path) -> dict[str, str]:
    """The variables of a file with `NAME=VALUE` lines, as `docker run --env-file` takes it.

    Raises SettingsError.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--env-file: {path} cannot be read: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.removeprefix("export ").partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--env-file: {path}, line {number} is not NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _unusable(name: str, value: str) -> str | None:
    try:
        Settings.model_validate({name: value})
    except ValidationError as error:
        return "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
    return None


def _contradictions(settings: Settings) -> tuple[str, ...]:
    """What `serve` refuses; event sync without a tokenizer is a check of its own."""
    checks: tuple[Callable[[], object], ...] = (
        settings.check_tls,
        lambda: load_curve_keys(settings),
    )
    found = []
    for check in checks:
        try:
            check()
        except SettingsError as error:
            found.append(str(error))
    return tuple(found)
