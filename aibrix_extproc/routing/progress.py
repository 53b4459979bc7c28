"""How far each source has come with the prompt that it computes: an estimate between two answers.

Owns the prompts under way of each source, in the order in which they were sent, and the pace at
which they were seen to be done. `now` is seconds of any clock that does not go back. It knows no
candidate and no stream; one thread's, the event loop's, as the ledger that it serves.

An engine computes prompts in the order in which they come, so of those promised to a source the
first is under way, since it came or since the one before it was done. Without this a pod that has
nearly done counts as busy as one that has just begun.
"""

from dataclasses import dataclass, field
from typing import Final

_LEARNT_FROM_TOKENS: Final = 256
"""A shorter prompt is done in a step whose time others make."""
_SHARE_OF_NEWEST: Final = 0.1
"""In the mean of the pace: some ten prompts make it."""
_LARGEST_SHARE: Final = 0.95
"""Of the prompt under way that counts as computed: it is not done before its answer begins."""


@dataclass(slots=True, eq=False)
class _Line:
    """The prompts of one source that are not done: ticket → (tokens, when it came)."""

    prompts: dict[int, tuple[int, float]] = field(default_factory=dict)
    done_s: float = 0.0
    tokens_per_s: float = 0.0
    """0: not known yet, and then nothing counts as computed."""
    most: float = 0.0
    since_s: float = 0.0
    """Of the first prompt: what may count as computed of it, and since when it is under way."""

    def look(self) -> None:
        """Another prompt may be the first."""
        tokens, came_s = next(iter(self.prompts.values()))
        self.most = _LARGEST_SHARE * tokens
        self.since_s = max(came_s, self.done_s)


class Progress:
    """The lines of all sources. A ticket that is in no line changes nothing."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line] = {}
        self._busy: dict[int, _Line] = {}
        """Those with a prompt under way."""

    def begin(self, source: int, ticket: int, tokens: int, now: float) -> None:
        """A prompt was sent, of which the source must compute so many tokens."""
        line = self._lines.get(source)
        if line is None:
            line = self._lines[source] = _Line()
        line.prompts[ticket] = (tokens, now)
        if len(line.prompts) == 1:
            line.look()
            self._busy[source] = line

    def done(self, source: int, ticket: int, now: float, learns: bool) -> None:
        """Its answer begins. `learns`: not with the whole answer at once, so that the time from
        the beginning of the prompt until now is that of its prefill."""
        line = self._lines.get(source)
        if line is None or ticket not in line.prompts:
            return
        tokens, came_s = line.prompts[ticket]
        took_s = now - max(came_s, line.done_s)
        if learns and took_s > 0 and tokens >= _LEARNT_FROM_TOKENS:
            seen = tokens / took_s
            known = line.tokens_per_s or seen
            line.tokens_per_s = known + _SHARE_OF_NEWEST * (seen - known)
        line.done_s = now
        self.leave(source, ticket)

    def leave(self, source: int, ticket: int) -> None:
        """It is done, or its client has gone."""
        line = self._lines.get(source)
        if line is None or line.prompts.pop(ticket, None) is None:
            return
        if line.prompts:
            line.look()
        else:
            del self._busy[source]

    def forget(self, source: int) -> None:
        """The source was removed."""
        self._lines.pop(source, None)
        self._busy.pop(source, None)

    def computed(self, now: float) -> dict[int, float]:
        """Source → tokens computed of those promised to it, where any are owed."""
        found = {}
        for source, line in self._busy.items():
            tokens = line.tokens_per_s * (now - line.since_s)
            found[source] = tokens if tokens < line.most else line.most
        return found
