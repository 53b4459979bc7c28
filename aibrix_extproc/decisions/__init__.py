"""What was decided, kept for who asks why: the last ten thousand in memory, a share in the log.

Owns the record of a decision, its ring, its JSON and its line in the log. It decides nothing, and
no prompt text or token reaches it. Belongs to the event loop's thread.
"""

from aibrix_extproc.decisions.record import DecisionRecord, recorded
from aibrix_extproc.decisions.ring import DecisionRing
from aibrix_extproc.decisions.sampled import SampledLog

__all__ = ["DecisionRecord", "DecisionRing", "SampledLog", "recorded"]
