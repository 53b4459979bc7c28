"""Event sync: the engines' KV events in, the index kept true. Nothing else here knows ZMQ."""

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceManager, SourceView

__all__ = ["SourceManager", "SourceState", "SourceView"]
