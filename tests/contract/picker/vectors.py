"""Golden vectors: rules of the endpoint-picker protocol as data, read from `vectors/*.yaml`.

Owns the form of a vector and what is checked of it at reading; a vector that cannot be read is an
error that names it. Knows neither gRPC nor how a vector is run (`runner`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).with_name("vectors")
_KEYS: Final = {
    "id",
    "rule",
    "source",
    "level",
    "modes",
    "steps",
    "expect",
    "streams",
    "afterwards",
}
SOURCES: Final = ("proposal 004: ", "Envoy's API: ", "Envoy 1.40, measured: ", "this server: ")
"""How the source of a rule begins."""


class Level(StrEnum):
    """Whose rule it is."""

    PROTOCOL = "protocol"
    """A MUST of the Gateway API Inference Extension's endpoint picker protocol."""
    ENVOY = "envoy"
    """What Envoy demands of any external processor."""
    AIBRIX = "aibrix"
    """A choice of this server; another picker may choose otherwise."""


PROFILES: Final[Mapping[str, frozenset[Level]]] = {
    "epp": frozenset({Level.PROTOCOL, Level.ENVOY}),
    "aibrix": frozenset(Level),
}
"""Which levels a target is held to."""


class Mode(StrEnum):
    """How Envoy sends the request's body."""

    BUFFERED = "buffered"
    DUPLEX = "duplex"
    ANY = "any"
    """The vector has no request body: it is run once."""


class VectorError(Exception):
    """A vector that cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One rule, what is sent to see whether it holds, and what is expected."""

    topic: str
    id: str
    rule: str
    source: str
    level: Level
    modes: tuple[Mode, ...]
    steps: tuple[tuple[str, Any], ...]
    """In order: (name, argument); `steps` knows them."""
    expect: tuple[tuple[str, Any], ...]
    """(name, argument); `matchers` knows them."""
    streams: int = 1
    """How many such streams run at once, in step with each other."""
    afterwards: str = ""
    """`serves`: a plain request must be picked after it."""

    def __str__(self) -> str:
        return self.id

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be known of the target: names of options."""
        text = repr((self.steps, self.expect))
        own_prompt = any("prompt" in (argument or {}) for _, argument in self.steps)
        model = "$model" in text or own_prompt or self.afterwards
        pods = "$pods" in text or "$last_pod" in text
        return tuple(
            name for name, needed in (("--target-model", model), ("--target-pods", pods)) if needed
        )


def load(folder: Path = FOLDER) -> list[Vector]:
    """All vectors, in the order of their files. Raises VectorError."""
    found = [vector for path in sorted(folder.glob("*.yaml")) for vector in _read(path)]
    seen: set[str] = set()
    for vector in found:
        if vector.id in seen:
            raise VectorError(f"{vector.id}: this id stands twice")
        seen.add(vector.id)
    return found


def _read(path: Path) -> Iterator[Vector]:
    for entry in yaml.safe_load(path.read_text()):
        name = entry.get("id", f"an entry of {path.name} without an id")
        try:
            yield _vector(path.stem, entry)
        except (KeyError, ValueError, TypeError) as error:
            raise VectorError(f"{path.name}: {name}: {error!r}") from error


def _vector(topic: str, entry: dict[str, Any]) -> Vector:
    if unknown := set(entry) - _KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    source = _one_line(entry["source"])
    if not source.startswith(SOURCES):
        raise ValueError(f"the source must begin with one of {SOURCES}")
    return Vector(
        topic=topic,
        id=entry["id"],
        rule=_one_line(entry["rule"]),
        source=source,
        level=Level(entry["level"]),
        modes=tuple(Mode(mode) for mode in entry["modes"]),
        steps=tuple(_pair(step) for step in entry["steps"]),
        expect=tuple(entry["expect"].items()),
        streams=entry.get("streams", 1),
        afterwards=entry.get("afterwards", ""),
    )


def _pair(step: Mapping[str, Any]) -> tuple[str, Any]:
    ((name, argument),) = step.items()
    return name, argument


def _one_line(text: str) -> str:
    return " ".join(text.split())
