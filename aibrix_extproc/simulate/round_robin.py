"""`round-robin`: each candidate in turn. Only the simulator has it: what others calibrate with."""

from aibrix_extproc.routing.types import Decision, Load, RouteContext, Scored


class RoundRobin:
    """The first request goes to the first candidate, the next to the next."""

    name: str = "round-robin"
    needs_tokens: bool = False

    def __init__(self) -> None:
        self._next = 0

    def rank(self, context: RouteContext) -> Decision:
        """The one whose turn it is, then those after it; neither load nor prompt counts."""
        at = self._next % len(context.candidates)
        self._next += 1
        order = context.candidates[at:] + context.candidates[:at]
        ranking = tuple(
            Scored(candidate, 0, context.loads.get(candidate.source, Load()), float(place))
            for place, candidate in enumerate(order)
        )
        return Decision(self.name, "load", ranking)
