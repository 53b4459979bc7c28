"""The figures of a run by the time at which requests came: what a restart does, for how long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aibrix_extproc.simulate.records import NO_GATEWAY, Record, Run


@dataclass(frozen=True, slots=True)
class Slice:
    """The requests that came within one piece of time. NaN where a figure does not exist."""

    from_s: float
    requests: int
    hit_ratio: float
    """The engines' own, of the requests that came then."""
    predicted_hit_ratio: float
    """As believed when they were decided; those that went around the gateways left out."""
    ttft_mean_s: float


def over_time(run: Run, every_s: float, start_s: float = 0.0) -> list[Slice]:
    """Slices of `every_s` from `start_s` to the last arrival, those without a request too."""
    slices: list[list[Record]] = []
    for record in run.records:
        place = math.floor((record.arrived_s - start_s) / every_s)
        if place < 0:
            continue
        while len(slices) <= place:
            slices.append([])
        slices[place].append(record)
    return [_slice(start_s + n * every_s, records) for n, records in enumerate(slices)]


def _slice(from_s: float, records: Sequence[Record]) -> Slice:
    decided = [record for record in records if record.gateway != NO_GATEWAY]
    waits_s = [record.first_token_s - record.arrived_s for record in records]
    return Slice(
        from_s,
        len(records),
        _share(sum(r.cached_tokens for r in records), records),
        _share(sum(r.matched_tokens for r in decided), decided),
        math.fsum(waits_s) / len(waits_s) if waits_s else math.nan,
    )


def _share(tokens: int, records: Sequence[Record]) -> float:
    prompts = sum(record.prompt_tokens for record in records)
    return tokens / prompts if prompts else math.nan
