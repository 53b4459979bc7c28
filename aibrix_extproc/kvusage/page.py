"""How full each rank's KV cache is, from its engine's metrics page. Pure."""

import math
import re
from collections.abc import Mapping
from typing import Final

from aibrix_extproc.exposition import lines_named

_LINE: Final = re.compile(
    rb"vllm:(?:kv|gpu)_cache_usage_perc(?:\{([^}]*)\})? +([0-9.eE+-]+|NaN)(?: .*)?"
)
"""`gpu_` in older vLLM; for a while both were there, with the same value."""
_ENGINE: Final = re.compile(rb'(?:^|,)engine="([0-9]+)"')


def read_usage(exposition: bytes) -> Mapping[int, float]:
    """Rank → share of the blocks that running requests hold, 0 to 1, whatever `perc` may say.

    Empty for another engine. Blocks that are only kept for reuse count as free. A value that is
    none is left out, as for a rank that is not there.
    """
    found: dict[int, float] = {}
    for line in lines_named(exposition, b"_cache_usage_perc"):
        read = _LINE.fullmatch(line)
        if read is None:
            continue
        rank, share = _ENGINE.search(read[1] or b""), _share(read[2])
        if share is not None:
            found[int(rank[1]) if rank else 0] = share
    return found


def _share(value: bytes) -> float | None:
    try:
        share = float(value)
    except ValueError:
        return None
    return share if math.isfinite(share) and 0 <= share <= 1 else None
