"""How far one source's part of the index is believed, and the effects that keep that true.

Owns the state, what is known of completeness, and the effects that wait to be carried out.
Knows neither numbers nor connections: `source` decides when a state changes.
"""

from aibrix_extproc.kvevents.effects import (
    Clear,
    ClearReason,
    Effect,
    Effects,
    SourceState,
    StaleChanged,
    StateChanged,
)

IN_SYNC = (SourceState.EXACT, SourceState.PARTIAL)


class Belief:
    """State and outbox of one source."""

    def __init__(self) -> None:
        self.state = SourceState.CONNECTING
        self.why = "added"
        """Of the state that comes next, for the log."""
        self.complete = False
        """Everything since the engine's start, or since it was empty, is applied: EXACT."""
        self.dirty = False
        """Something was applied since the last clear."""
        self.first_sync_done = False
        """It has been EXACT, PARTIAL or LOST once."""
        self.stale = False
        """Nothing was heard for too long to believe what is held."""
        self._held_through = False
        self._owed: list[Effect] = []

    @property
    def usable(self) -> bool:
        """Whether its depth may be believed: what is held is right, or was a moment ago.

        SYNCING counts where it follows EXACT or PARTIAL and nothing was cleared since: what a
        replay builds up again passes through the engine's past, with blocks long removed.
        """
        held = self.state is SourceState.SYNCING and self._held_through
        return (self.state in IN_SYNC or held) and not self.stale

    def become(self, state: SourceState, why: str) -> None:
        """Change the state; nothing where it is the same."""
        before = self.state
        if state is before:
            return
        if state is SourceState.SYNCING:
            self._held_through = before in IN_SYNC
        else:
            self.first_sync_done = True
        self.state = state
        self.owe(StateChanged(before, state, why))

    def clear(self, reason: ClearReason) -> None:
        """Empty the source: what is held from now on is not known to be complete."""
        self.owe(Clear(reason))
        self.dirty = False
        self.complete = False
        self.doubt()

    def mark_stale(self, stale: bool, silent_s: float) -> None:
        """The source has been silent for too long, or is heard again."""
        if stale is not self.stale:
            self.stale = stale
            self.owe(StaleChanged(stale, silent_s))

    def doubt(self) -> None:
        """What is built up while SYNCING is not to be believed before its end."""
        self._held_through = False

    def owe(self, effect: Effect) -> None:
        """One more effect, after those that wait."""
        self._owed.append(effect)

    def flush(self) -> Effects:
        """All effects that wait, in order; none waits afterwards."""
        effects = tuple(self._owed)
        self._owed.clear()
        return effects
