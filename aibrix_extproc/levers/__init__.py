"""What an operator may change while the process runs, without a rollout.

`board` owns the levers: what each does, what it was before, who moved it. It knows no HTTP
(`admin.lever_pages` does). Nothing here outlives the process: after a restart every lever is at
its default, which is what the variables say.
"""

from aibrix_extproc.levers.board import Lever, LeverBoard, LeverRefused, Pull

__all__ = ["Lever", "LeverBoard", "LeverRefused", "Pull"]
