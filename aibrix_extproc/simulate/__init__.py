"""The simulator: our router and index with engines on a virtual clock, in one process.

Owns the virtual engines, their traffic and the report. What decides (`decide`, `routing`), what
follows events (`kvevents.SourceSync`), the index and the fake engine's scheduler and block manager
are the real ones; only time is not.
"""
