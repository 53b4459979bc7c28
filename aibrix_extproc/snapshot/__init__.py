"""Warm restart: the index on disk, or on its way from another replica, and back into sources.

Owns the file's format, when it is written, from where it is read, and which saved source belongs
to which rank of which pod. Knows neither the bytes of a source (`index.saved`) nor how the engine
proves that it is still the same one (`kvevents`): nothing of what is taken over is believed
before that. docs/warm-restart.md says how to use it.
"""

from aibrix_extproc.snapshot.service import Snapshots

__all__ = ["Snapshots"]
