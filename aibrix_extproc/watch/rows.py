"""What is shown: rows of plain values at one moment, their order, their sums, and what is wrong.

Owns the meaning of each figure. Knows no socket, no file, no screen and no clock.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.watch.holdings import Holdings
from aibrix_extproc.watch.numbers import spelled


@dataclass(frozen=True, slots=True)
class Row:
    """One source. None: nobody here can know (a server does not tell, or nothing came yet)."""

    name: str
    state: str
    """One of SourceState, or `off`: it sends no events, or event sync is off."""
    why: str = ""
    """Of the last change of state."""
    stale: bool = False
    """Silent for longer than it is believed."""
    connected: bool | None = None
    """The connection to its event port stands."""
    endpoint: str | None = None
    model: str | None = None
    first: int | None = None
    """The first live number seen of this engine process."""
    sequence: int | None = None
    """The last number applied."""
    missing: int | None = None
    """Numbers of this engine process that are missing now."""
    holes: tuple[tuple[int, int], ...] = ()
    """Which: first and last of each hole."""
    gaps: int | None = None
    """Holes seen so far, those that were filled too."""
    refilled: int | None = None
    """Missing batches that a replay brought."""
    restarts: int | None = None
    """Other engine processes that appeared behind the source."""
    messages: int | None = None
    """Messages of the live stream."""
    replayed: int | None = None
    """Batches that replays brought, the same ones again too."""
    bytes: int | None = None
    """Of the live stream: topic, number and payload."""
    stored: int | None = None
    """Blocks put into the index, further copies and joined orphans too."""
    removed: int | None = None
    """Copies taken out."""
    cleared: int | None = None
    """AllBlocksCleared events of the engine."""
    emptied: Mapping[str, int] = field(default_factory=dict)
    """How often event sync itself emptied the source, by reason."""
    parked: int | None = None
    """Blocks that came before their parent, so far."""
    orphans: int | None = None
    """Blocks that wait for their parent now, as of the last look at the holdings."""
    undecodable: Mapping[str, int] = field(default_factory=dict)
    """Messages that are no batch, and parts of batches that cannot be read, by reason."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Events that can be read and are not used, by reason."""
    lag_s: float | None = None
    """Between the time stamp of the last live batch and its arrival."""
    idle_s: float | None = None
    """Since the last live message."""
    batches_per_s: float | None = None
    stored_per_s: float | None = None
    removed_per_s: float | None = None
    bytes_per_s: float | None = None
    held: int | None = None
    """Blocks on the GPU, each copy counted."""
    waiting_bytes: int = 0
    """Live batches that wait for a replay."""
    full: bool = False
    """Blocks were left out because the index is full."""
    block_sizes: tuple[int, ...] = ()
    """Tokens per block, of all blocks announced so far."""
    media: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    """Names, or ids where the engine tells no names."""


@dataclass(frozen=True, slots=True)
class View:
    """What one station knows at one moment."""

    rows: tuple[Row, ...]
    now: float
    """Seconds since the epoch: of now, or of the recording."""
    elapsed_s: float
    holdings: Holdings | None = None
    notes: tuple[str, ...] = ()
    """What the operator may want to know beside the rows."""
    failures: tuple[str, ...] = ()
    """What keeps the view from being whole: a recording that stopped, a page that fails."""
    log: tuple[str, ...] = ()
    """The last changes of state."""
    ended: bool = False
    """Nothing follows: a recording is at its end."""


class Sort(StrEnum):
    """What the rows are ordered by."""

    NAME = "name"
    STATE = "state"
    BATCHES = "batches"
    STORED = "stored"
    REMOVED = "removed"
    BYTES = "bytes"
    LAG = "lag"
    MISSING = "missing"
    HELD = "held"

    def next(self) -> "Sort":
        """The one after it, in a circle."""
        every = list(Sort)
        return every[(every.index(self) + 1) % len(every)]


_WORST_FIRST: Final = (
    SourceState.LOST,
    SourceState.CONNECTING,
    SourceState.SYNCING,
    SourceState.PARTIAL,
    "off",
    SourceState.EXACT,
)
_LARGEST_FIRST: Final[Mapping[Sort, Callable[[Row], float | None]]] = {
    Sort.BATCHES: lambda row: row.batches_per_s,
    Sort.STORED: lambda row: row.stored_per_s,
    Sort.REMOVED: lambda row: row.removed_per_s,
    Sort.BYTES: lambda row: row.bytes_per_s,
    Sort.LAG: lambda row: row.lag_s,
    Sort.MISSING: lambda row: row.missing,
    Sort.HELD: lambda row: row.held,
}


def ordered(rows: Iterable[Row], by: Sort) -> list[Row]:
    """The rows as they are shown: by name, the worst state first, or the largest figure first."""
    named = sorted(rows, key=lambda row: _natural(row.name))
    if by is Sort.STATE:
        return sorted(named, key=lambda row: (_rank(row.state), not row.stale))
    figure = _LARGEST_FIRST.get(by)
    if figure is None:
        return named
    return sorted(named, key=lambda row: -(figure(row) or 0.0))


def _rank(state: str) -> int:
    return _WORST_FIRST.index(state) if state in _WORST_FIRST else 0


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """`pod-10` after `pod-9`."""
    parts, digits = [], ""
    for character in name + "\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, character))
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all sources; None where no source knows the figure."""

    sources: int
    by_state: Mapping[str, int]
    batches_per_s: float | None
    stored_per_s: float | None
    removed_per_s: float | None
    bytes_per_s: float | None
    held: int | None
    missing: int | None
    undecodable: int
    lag_max_s: float | None


def totals(rows: Sequence[Row]) -> Totals:
    """The sums of these rows."""
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    lags = [row.lag_s for row in rows if row.lag_s is not None]
    missing, held = _sum(r.missing for r in rows), _sum(r.held for r in rows)
    return Totals(
        sources=len(rows),
        by_state=dict(sorted(states.items(), key=lambda item: _rank(item[0]), reverse=True)),
        batches_per_s=_sum(r.batches_per_s for r in rows),
        stored_per_s=_sum(r.stored_per_s for r in rows),
        removed_per_s=_sum(r.removed_per_s for r in rows),
        bytes_per_s=_sum(r.bytes_per_s for r in rows),
        held=None if held is None else int(held),
        missing=None if missing is None else int(missing),
        undecodable=sum(sum(row.undecodable.values()) for row in rows),
        lag_max_s=max(lags, default=None),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def troubles(view: View) -> list[str]:
    """What is wrong, a line for each source that has something: the reasons of exit code 1.

    Gaps that a replay filled, restarts and cleared sources are told in the rows and are no
    trouble: event sync has dealt with them.
    """
    lines = list(view.failures)
    for row in view.rows:
        said = _trouble(row)
        if said:
            lines.append(f"{row.name}: {'; '.join(said)}")
    return lines


def _trouble(row: Row) -> list[str]:
    said = []
    if row.state == SourceState.CONNECTING:
        said.append("not reached")
    elif row.state == SourceState.LOST:
        said.append(f"LOST ({row.why})" if row.why else "LOST")
    elif row.connected is False:
        said.append("the connection is gone")
    if row.stale:
        said.append("silent for too long")
    if row.missing:
        named = spelled(row.holes)
        said.append(f"{row.missing} missing ({named})" if named else f"{row.missing} missing")
    said += [f"{count} undecodable ({reason})" for reason, count in row.undecodable.items()]
    if row.full:
        said.append("the index is full")
    return said


def plain(row: Row) -> dict[str, Any]:
    """The row as JSON values, without what is not known."""
    values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    kept = {name: v for name, v in values.items() if v is not None and v not in ("", (), {})}
    return {name: _jsonable(value) for name, value in kept.items()}


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, str) else value
