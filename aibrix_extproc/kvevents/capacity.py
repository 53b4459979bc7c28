"""How many blocks an engine has, by its own metrics page, and whether a source holds more.

A client can make an engine announce its hits again (`kv_cache_report_mode: full`), with no removal
to match: copies then grow without bound, and a source says that it holds what is long gone. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.exposition import lines_named

_LINE: Final = re.compile(rb"vllm:cache_config_info\{([^}]*)\} +1")
_LABEL: Final = re.compile(rb'(engine|block_size|num_gpu_blocks)="([0-9]+)"')


@dataclass(frozen=True, slots=True)
class Capacity:
    """One rank's cache, as its engine was configured."""

    blocks: int
    block_size: int | None
    """Tokens; None where the page does not say."""

    def holds_too_much(self, placements: int, block_size: int | None) -> bool:
        """Whether so many placements, of blocks of so many tokens, cannot be in this cache.

        The blocks of events may be smaller than those of the cache (hybrid models, context
        parallelism), so tokens are compared where both sizes are known.
        """
        if self.block_size is None or block_size is None:
            return placements > self.blocks
        return placements * block_size > self.blocks * max(self.block_size, block_size)


def read_capacities(exposition: bytes) -> Mapping[int, Capacity]:
    """Rank → capacity, from `/metrics` of vLLM 0.9 and later; empty for another engine."""
    found: dict[int, Capacity] = {}
    for line in lines_named(exposition, b"vllm:cache_config_info"):
        read = _LINE.match(line)
        if read is None:
            continue
        values = {name: int(value) for name, value in _LABEL.findall(read[1])}
        if values.get(b"num_gpu_blocks"):
            size = values.get(b"block_size") or None
            found[values.get(b"engine", 0)] = Capacity(values[b"num_gpu_blocks"], size)
    return found
