"""Figures from the `/metrics` page of an engine or of the processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Samples = Mapping[str, float]

QUERIES: Final = "vllm:prefix_cache_queries_total"
HITS: Final = "vllm:prefix_cache_hits_total"
ANSWERED: Final = "vllm:request_success_total"
PROMPT_TOKENS: Final = "aibrix_extproc_prompt_tokens_total"
MATCHED_TOKENS: Final = "aibrix_extproc_matched_tokens_total"

SCHEDULED_PROMPT_TOKENS: Final = "aibrix_extproc_scheduled_prompt_tokens_total"
SCHEDULED_MATCHED_TOKENS: Final = "aibrix_extproc_scheduled_matched_tokens_total"
SCHEDULED_FOLLOWED: Final = "aibrix_extproc_scheduled_followed"


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What an engine says of itself, since its start."""

    queried_tokens: int
    """Prompt tokens that were looked up in the prefix cache."""
    hit_tokens: int
    """Of these, found there."""
    answered: int
    """Requests answered in full."""


async def samples(session: aiohttp.ClientSession, url: str) -> Samples:
    """Every sample of a page by its name, summed over labels. Raises aiohttp.ClientError."""
    async with session.get(url) as reply:
        reply.raise_for_status()
        return summed(await reply.text())


def summed(page: str) -> Samples:
    """Every sample by its name, summed over labels."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def engine_figures(session: aiohttp.ClientSession, url: str) -> EngineFigures:
    """The figures of the engine at `url`. Raises aiohttp.ClientError."""
    found = await samples(session, f"{url}/metrics")
    return EngineFigures(
        queried_tokens=int(found.get(QUERIES, 0)),
        hit_tokens=int(found.get(HITS, 0)),
        answered=int(found.get(ANSWERED, 0)),
    )
