"""Other times for the sessions of a trace, so that one trace gives many runs to compare."""

import random
from collections.abc import Iterable
from dataclasses import replace

from aibrix_extproc.workloads.sessions import Session


def jittered(sessions: Iterable[Session], jitter_s: float, seed: int) -> list[Session]:
    """Each session `0` to `jitter_s` seconds later, drawn from the seed, in the order of the new
    times. What is asked stays as it is, and so does each session's id.

    It keeps the rate: nothing is added or left out, and the number of arrivals in a window differs
    from the trace's by what lies within `jitter_s` of the window's edges. Where a trace's clock
    ticks (every 3 s in Mooncake's conversations), a jitter of one tick spreads what came in one
    heap over the tick. With 0 the times are the trace's own.
    """
    if not jitter_s:
        return list(sessions)
    rng = random.Random(f"jitter {seed}")
    later = [
        replace(session, start_s=session.start_s + rng.uniform(0.0, jitter_s))
        for session in sessions
    ]
    return sorted(later, key=lambda session: session.start_s)
