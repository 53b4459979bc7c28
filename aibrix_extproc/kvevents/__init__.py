"""Event sync: the engines' KV events in, the index kept true. No other room knows ZMQ.

A pod's ranks become sources (`manager`); a few threads (`subscriber`) read the sockets of each
(`line`, `sockets`, `replay`); what they bring is read (`wire`) and given to the source's driver
(`feed`), which carries out what its state machine (`source`, with the table of transitions) says.
The state machine's parts: what is believed (`belief`), the connection (`contact`), what is applied
(`progress`, `checkpoint`), what waits (`waiting`), what is asked (`asking`), what is due with time
(`patience`), and how they move together (`steps`). Whoever watches a source overhears it (`tap`).
"""

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceManager, SourceView

__all__ = ["SourceManager", "SourceState", "SourceView"]
