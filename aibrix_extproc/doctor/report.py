"""Findings as text and as JSON.

Owns the two forms, and that neither holds a password or a control character. Colours only on a
terminal, and never without the word.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from aibrix_extproc.doctor.findings import Finding, Severity, counts, worst

VERSION: Final = 1
"""Of the JSON's shape."""

_STYLES: Final = {
    Severity.RED: "bold red",
    Severity.YELLOW: "yellow",
    Severity.GREEN: "green",
    Severity.SKIPPED: "dim",
}
_WIDTH: Final = 8
_USER_INFO: Final = re.compile(r"(://)[^/\s@]+@")
_LIMIT: Final = 600


def as_json(findings: Sequence[Finding], exit_code: int) -> str:
    """One object; `findings` in the order of the text."""
    page: dict[str, Any] = {
        "version": VERSION,
        "result": str(worst(findings)),
        "exit_code": exit_code,
        "counts": {str(severity): count for severity, count in counts(findings).items()},
        "findings": [
            {
                "area": str(finding.area),
                "severity": str(finding.severity),
                "code": finding.code,
                "subject": clean(finding.subject),
                "seen": clean(finding.seen),
                "do": finding.do,
            }
            for finding in findings
        ],
    }
    return json.dumps(page, indent=2)


def print_text(findings: Iterable[Finding], console: Console) -> None:
    """A line for what is right, and for the rest also what to do."""
    found = list(findings)
    area = None
    for finding in found:
        if finding.area is not area:
            area = finding.area
            console.print(Text(f"\n{area}" if finding is not found[0] else str(area), "bold"))
        _print(finding, console)
    total = ", ".join(f"{count} {severity}" for severity, count in counts(found).items())
    console.print(Text(f"\n{total}", _STYLES[worst(found)]))


def _print(finding: Finding, console: Console) -> None:
    word = Text(f"  {finding.severity:<{_WIDTH}}", _STYLES[finding.severity])
    seen = clean(finding.seen)
    if not finding.do:
        console.print(word + Text(f"{clean(finding.subject)}: {seen}"), soft_wrap=True)
        return
    head = word + Text(finding.code, "bold") + Text(f"  {clean(finding.subject)}")
    console.print(head, soft_wrap=True)
    indent = " " * (_WIDTH + 2)
    console.print(Text(f"{indent}seen: {seen}"), soft_wrap=True)
    console.print(Text(f"{indent}do:   {finding.do}"), soft_wrap=True)


def clean(text: str) -> str:
    """Fit for a terminal, and without user and password of a URL."""
    shown = _USER_INFO.sub(r"\1…@", "".join(c if c.isprintable() else "?" for c in text))
    return shown if len(shown) <= _LIMIT else f"{shown[: _LIMIT - 1]}…"
