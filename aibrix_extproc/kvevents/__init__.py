"""Event sync: the engines' KV events in, the index kept true. No other room knows ZMQ.

How one source moves between its states (`source.py`, carried out by `feed.py`):

| from | on | to | effects |
|---|---|---|---|
| CONNECTING, LOST | contact | SYNCING | ask for a replay from 0 |
| CONNECTING, resumed | contact | SYNCING | ask from the number saved: the same engine? |
| SYNCING | a number that continues what was applied | same | apply |
| SYNCING | a live number further on | same | it waits, in order |
| SYNCING | the replay ended, or live batches join what was applied | EXACT, PARTIAL | |
| SYNCING | more bytes wait than allowed | LOST | clear; ask again after the probe interval |
| EXACT, PARTIAL | a live number further on (gap) | SYNCING | ask from the last number applied |
| any | a hole that no replay fills | PARTIAL in the end | clear, go on behind it |
| any | a live number that goes down (restart) | SYNCING | clear, ask from 0 |
| any | an answer that contradicts what was applied | SYNCING | clear; ask from 0, or reconnect |
| any | the driver failed | SYNCING | clear, reconnect |
| any | contact lost | same | waiting batches and questions are dropped |
| any | contact again | SYNCING | ask from the last number applied: the same engine? |
| any | no contact for too long | LOST | clear |
| EXACT, PARTIAL | AllBlocksCleared, or number 0, applied | EXACT | |
| EXACT, PARTIAL | a batch that lost something | PARTIAL | clear |
| EXACT, PARTIAL | silence (at first a short one) | same | ask from the last number applied |

Without a replay port: contact leads to PARTIAL (and clears, where something was known), and a
gap is never filled.

Two rules make it sound:

- **A connection belongs to one engine process.** Within one, live numbers only grow, so whatever
  grows is the same process. The driver must not give a batch of an old connection after
  `connected`. A new connection proves nothing: a restarted engine may have passed the old number.
- **A question begins with the last batch applied, not with the first one missing**, so that the
  answer proves whose it is: payloads carry the engine's clock, thus no two processes send equal
  ones. An empty answer means an engine that has not come so far: another process.
"""

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceManager, SourceView

__all__ = ["SourceManager", "SourceState", "SourceView"]
