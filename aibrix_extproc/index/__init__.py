"""Which pod holds which blocks: the index of every engine's KV cache.

Owns decoding of KV events, block keys, placements and the depth of a prompt in every source.
Knows no ZMQ, no HTTP and no routing: bytes and tokens in, depths out.
"""

from aibrix_extproc.index.backends import BACKEND, Backend, BackendMissing, PrefixIndex, open_index
from aibrix_extproc.index.results import LOSSES, SKIP_REASONS, Applied, IndexStats

__all__ = [
    "BACKEND",
    "LOSSES",
    "SKIP_REASONS",
    "Applied",
    "Backend",
    "BackendMissing",
    "IndexStats",
    "PrefixIndex",
    "open_index",
]
