"""A fake vLLM, good enough to trust: paged blocks, KV events, OpenAI's API, in this process.

Knows nothing of the other rooms, and they know nothing of it.
"""
