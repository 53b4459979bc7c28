"""Views as plain text and as JSON: a line an interval, and the summary at the end.

Owns the words and units of every figure, which the screen uses too. Prints nothing itself.
"""

import time
from collections.abc import Mapping
from typing import Any

from aibrix_extproc.watch.holdings import Group, Holdings
from aibrix_extproc.watch.numbers import spelled
from aibrix_extproc.watch.rows import Row, Sort, View, ordered, plain, totals, troubles

UNKNOWN = "-"
_MOST_HOLDERS = 6
_MOST_TOKENS = 16


# -- figures --------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    """`12,345`; `1.2 M` from a million on."""
    if value is None:
        return UNKNOWN
    if value >= 1_000_000:
        return f"{value / 1_000_000:.1f} M"
    return f"{value:,.0f}"


def rate(value: float | None) -> str:
    """`0.4`, `12`, `1.2 k`: per second."""
    if value is None:
        return UNKNOWN
    if value >= 10_000:
        return f"{value / 1000:.0f} k"
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def size(value: float | None) -> str:
    """`980 B`, `12.4 kB`, `3.1 MB`."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def span(seconds: float | None) -> str:
    """`3 ms`, `2.5 s`, `4 min`, `7 h`, `3 d`, `years`: a clock that is wrong, or a recording."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    for unit, per, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < per * most:
            digits = 1 if seconds < 10 else 0
            return f"{seconds / per:.{digits}f} {unit}"
    return f"{seconds / 86_400:.0f} d" if seconds < 365 * 86_400 else "years"


def clock(view: View) -> str:
    """The time of day of a view."""
    return time.strftime("%H:%M:%S", time.localtime(view.now))


def states(view: View) -> str:
    """`4 sources: 3 EXACT, 1 LOST`."""
    total = totals(view.rows)
    if not total.sources:
        return "no source"
    by_state = ", ".join(f"{number} {state}" for state, number in total.by_state.items())
    return f"{total.sources} source{'s' if total.sources > 1 else ''}: {by_state}"


# -- a line an interval ---------------------------------------------------------------------------


def line(view: View) -> str:
    """One line on all sources, for a pipe or a file."""
    total = totals(view.rows)
    parts = [
        f"{clock(view)} {states(view)}",
        f"{rate(total.batches_per_s)} batches/s",
        f"+{rate(total.stored_per_s)} -{rate(total.removed_per_s)} blocks/s",
        f"{size(total.bytes_per_s)}/s",
        f"lag {span(total.lag_max_s)}",
        f"{count(total.held)} held",
        f"{count(total.missing)} missing",
        f"{total.undecodable} undecodable",
    ]
    return " | ".join(parts)


def json_line(
    view: View, by: Sort, *, with_tokens: bool = False, last: bool = False
) -> Mapping[str, Any]:
    """One interval as JSON values; the last one says what is wrong."""
    said: dict[str, Any] = {
        "time": round(view.now, 6),
        "elapsed_s": round(view.elapsed_s, 6),
        "states": dict(totals(view.rows).by_state),
        "sources": [plain(row) for row in ordered(view.rows, by)],
    }
    if view.holdings is not None:
        said["holdings"] = _holdings(view.holdings, with_tokens)
    for name in ("notes", "failures"):
        if getattr(view, name):
            said[name] = list(getattr(view, name))
    if last:
        said["summary"] = True
        said["troubles"] = troubles(view)
    return said


def _holdings(found: Holdings, with_tokens: bool) -> dict[str, Any]:
    return {
        "blocks": found.blocks,
        "estimated_from_one_in": found.one_in,
        "shared": found.shared,
        "by_medium": dict(found.by_medium),
        "groups": [_group(group, with_tokens) for group in found.groups],
        "pairs": [
            {"sources": [p.one, p.other], "shared": p.shared, "share": round(p.share, 4)}
            for p in found.pairs
        ],
    }


def _group(group: Group, with_tokens: bool) -> dict[str, Any]:
    said: dict[str, Any] = {
        "holders": list(group.holders),
        "blocks": group.blocks,
        "key": f"{group.key:016x}",
    }
    if group.model:
        said["model"] = group.model
    if group.depths is not None:
        said["depths"] = list(group.depths)
    if with_tokens and group.tokens is not None:
        said["tokens"] = list(group.tokens)
    return said


# -- who holds what -------------------------------------------------------------------------------


def group_texts(group: Group, sources: int, *, with_tokens: bool) -> tuple[str, str, str, str]:
    """Holders in number, blocks, where they stand, and who: the columns of a group."""
    where = UNKNOWN
    if group.depths is not None:
        low, high = group.depths
        where = str(low) if low == high else f"{low}-{high}"
    who = ", ".join(group.holders[:_MOST_HOLDERS])
    if len(group.holders) > _MOST_HOLDERS:
        who += f" and {len(group.holders) - _MOST_HOLDERS} more"
    if with_tokens and group.tokens is not None:
        tokens = " ".join(map(str, group.tokens[:_MOST_TOKENS]))
        who += f" | tokens {tokens}{' …' if len(group.tokens) > _MOST_TOKENS else ''}"
    return f"{len(group.holders)} of {sources}", count(group.blocks), where, who


def holdings_lines(found: Holdings, limit: int, *, with_tokens: bool = False) -> list[str]:
    """Who holds what, for the summary."""
    lines = [
        f"who holds what: {count(found.blocks)} distinct blocks, {count(found.shared)} of them in "
        f"two sources or more{_estimated(found)}"
    ]
    for group in found.groups[:limit]:
        number, blocks, where, who = group_texts(group, found.sources, with_tokens=with_tokens)
        noun = "block" if group.blocks == 1 else "blocks"
        lines.append(f"  in {number}: {blocks} {noun}, at {where} of a prompt ({who})")
    if len(found.groups) > limit:
        lines.append(f"  and {len(found.groups) - limit} more groups")
    lines += [
        f"  {pair.one} and {pair.other}: {count(pair.shared)} blocks in both, "
        f"{pair.share:.0%} of the smaller"
        for pair in found.pairs[:limit]
    ]
    return lines


def _estimated(found: Holdings) -> str:
    return f" (estimated from one block in {found.one_in})" if found.one_in > 1 else ""


# -- the summary ----------------------------------------------------------------------------------


def summary(view: View, by: Sort, *, with_tokens: bool = False) -> list[str]:
    """What was seen, a few lines for each source, and what is wrong."""
    lines = [f"{states(view)}; watched for {span(view.elapsed_s)}"]
    for row in ordered(view.rows, by):
        lines += source_lines(row)
    if view.holdings is not None:
        lines += holdings_lines(view.holdings, 10, with_tokens=with_tokens)
    lines += [f"note: {note}" for note in view.notes]
    wrong = troubles(view)
    lines += [f"trouble: {text}" for text in wrong] or ["no trouble"]
    return lines


def source_lines(row: Row) -> list[str]:
    """All that is known of one source."""
    state = f"{row.state}{', stale' if row.stale else ''}{f' ({row.why})' if row.why else ''}"
    first = UNKNOWN if row.first is None else row.first
    lines = [f"{row.name}: {state}"]
    if row.messages is None:
        lines.append(f"  last number {_or_unknown(row.sequence)}, {count(row.held)} blocks held")
        return lines
    missing = f"{row.missing} missing"
    if row.holes:
        missing += f" ({spelled(row.holes)})"
    lines.append(
        f"  {count(row.messages)} messages, {size(row.bytes)}, numbers {first} to "
        f"{_or_unknown(row.sequence)}, {missing}, {row.gaps} gaps, {row.refilled} refilled, "
        f"{row.restarts} restarts, {count(row.replayed)} replayed, lag {span(row.lag_s)}"
    )
    lines.append(
        f"  {count(row.stored)} blocks stored, {count(row.removed)} removed, {row.cleared} times "
        f"cleared, {count(row.parked)} parked, {count(row.held)} held; {_words(row.block_sizes)} "
        f"tokens a block, {_words(row.media)}, adapters {_words(row.adapters)}"
    )
    for what, counts in (
        ("emptied here", row.emptied),
        ("undecodable", row.undecodable),
        ("not used", row.skipped),
    ):
        if counts:
            lines.append(f"  {what}: {', '.join(f'{n} {why}' for why, n in counts.items())}")
    return lines


def _or_unknown(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _words(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values)) or UNKNOWN
