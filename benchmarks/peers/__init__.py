"""Workload W on other indexes. `python -m benchmarks.peers`; `make bench-peers` installs them.

The modules here run in three environments: `files` and `__main__` in this project's, `radix_tree`
in that of ai-dynamo-runtime, `smg` in that of smg, `indexer` in this project's with a child in
ai-dynamo-runtime's. What each figure includes stands in docs/performance.md.

Every peer is fed what its own engines would send it: the same events, and the same engine hash for
a block in every source (`shared_hashes`), since both peers hold that engines agree on hashes.
"""
