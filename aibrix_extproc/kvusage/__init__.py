"""How full engines' KV caches are, by their own metrics: read while a strategy goes by it.

`page` reads an engine's `/metrics`, `poll` asks for it again and again. What is known, and for how
long, is kept in `routing.cache_use`.
"""
