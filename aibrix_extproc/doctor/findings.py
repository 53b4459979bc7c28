"""What doctor says: findings with a code, a severity, what was seen and what to do. Pure.

Owns the shape of a finding and what all of them together come to. Which codes there are is for
the check modules, each of which owns its own; `catalog` has them all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """How bad it is; a word, and a colour on a terminal."""

    RED = "red"
    """Something does not work, or not as the settings say."""
    YELLOW = "yellow"
    """It works, and costs something, or may be meant so."""
    GREEN = "green"
    SKIPPED = "skipped"
    """Could not be looked at, or nobody asked for it; never a fault by itself."""


class Area(StrEnum):
    """The parts of a set-up, in the order in which they are shown."""

    VARIABLES = "variables"
    PODS = "pods"
    ENGINES = "engines"
    EVENTS = "events"
    TOKENIZER = "tokenizer"
    ENVOY = "envoy"
    SERVER = "server"


OK: Final = "ok"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    area: Area
    severity: Severity
    code: str
    """Stable: of `catalog.CODES`, else OK or SKIPPED."""
    subject: str
    """What it is about: a variable, a pod, a route; for OK and SKIPPED the check."""
    seen: str
    """No secret and no prompt."""
    do: str = ""
    """Empty where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Code:
    """A kind of trouble: its name, what it means and what to do about it."""

    name: str
    area: Area
    severity: Severity
    means: str
    do: str
    milder: bool = False
    """A RED code that is YELLOW in milder cases."""

    def found(self, subject: str, seen: str, severity: Severity | None = None) -> Finding:
        """A finding of this kind."""
        return Finding(self.area, severity or self.severity, self.name, subject, seen, self.do)


class NotLooked(Exception):
    """A check, or a part of the facts, that cannot be had; the message says why."""


def ok(area: Area, subject: str, seen: str) -> Finding:
    """Looked at, and right."""
    return Finding(area, Severity.GREEN, OK, subject, seen)


def skipped(area: Area, subject: str, why: str) -> Finding:
    """Not looked at."""
    return Finding(area, Severity.SKIPPED, SKIPPED, subject, why)


def worst(findings: Iterable[Finding]) -> Severity:
    """RED where any is, else YELLOW where any is, else GREEN."""
    found = {finding.severity for finding in findings}
    return next((s for s in (Severity.RED, Severity.YELLOW) if s in found), Severity.GREEN)


def counts(findings: Iterable[Finding]) -> dict[Severity, int]:
    """How many of each severity, the worst first."""
    listed = [finding.severity for finding in findings]
    return {severity: listed.count(severity) for severity in Severity}


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By area, and in it the worst first; otherwise as they were found."""
    areas, severities = list(Area), list(Severity)
    return sorted(findings, key=lambda f: (areas.index(f.area), severities.index(f.severity)))
