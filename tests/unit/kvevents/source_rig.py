"""A source that follows its engine, where the tests of its states begin."""

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.source import SyncLimits
from tests.unit.kvevents.engine_model import LIMITS, Driver

CONNECTING, SYNCING = SourceState.CONNECTING, SourceState.SYNCING
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


def synced(*, upto: int = 2, has_replay: bool = True, limits: SyncLimits = LIMITS) -> Driver:
    """A source that has followed its engine from number 0 to `upto`."""
    driver = Driver(has_replay=has_replay, limits=limits)
    driver.connected()
    driver.live(*range(upto + 1))
    if has_replay:
        driver.replayed(*range(upto + 1))
        driver.replay_ended()
    assert driver.state is EXACT
    assert driver.held_numbers == list(range(upto + 1))
    return driver
