"""Slow start: how the load of a pod that has just joined counts, until it has its share.

Pure. A pod that joins has no requests, and nothing in its cache. Who goes by the number of
requests would give it all that come until it has as many as the others: so many cold prompts at
once, which wait for each other there. So for a while it counts as if it had, beside its own, a part
of what the others have on average: all of it at first, less as time goes.

Prompt tokens that are promised are never added: they say by themselves when a pod has enough.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.routing.types import Candidate, Load

_ADDED: Final = tuple(
    one.name for one in msgspec.structs.fields(Load) if one.name != "prefill_tokens"
)
_NO_LOAD: Final = Load()


class Ramp:
    """Which pods joined when. `now` is seconds of any clock that does not go back."""

    def __init__(self, lasts_s: float) -> None:
        """`lasts_s`: how long a pod is ramped; 0: never."""
        self._lasts_s = lasts_s
        self._joined: dict[str, float] = {}
        self._is_busy = False

    def on_pod(self, before: Pod | None, after: Pod | None, now: float) -> None:
        """A pod has changed, None for absent. It joins where it may be chosen and could not before,
        or is another engine than before.

        Before the first decision nobody has anything to do: nobody is ramped then.
        """
        if after is not None and after.ready:
            is_same = before is not None and before.ready and before.identity == after.identity
            if self._lasts_s and self._is_busy and not is_same:
                self._joined[after.key] = now
        elif before is not None:
            self._joined.pop(before.key, None)

    def share(self, pod: str, now: float) -> float:
        """How much of the others' load is added to its own: 1 when it joins, 0 at the end."""
        joined = self._joined.get(pod)
        return 0.0 if joined is None else max(0.0, 1.0 - (now - joined) / self._lasts_s)

    def counted(
        self, loads: Mapping[int, Load], candidates: Sequence[Candidate], now: float
    ) -> Mapping[int, Load]:
        """The loads as they count in a decision between these candidates: the same, where nobody
        of them is ramped, or everybody is."""
        self._is_busy = True
        if not self._joined:
            return loads
        shares = {one.source: self.share(one.pod.key, now) for one in candidates}
        others = [loads.get(source, _NO_LOAD) for source, share in shares.items() if not share]
        if not others or len(others) == len(shares):
            self._forget(now)
            return loads
        means = {name: sum(getattr(load, name) for load in others) / len(others) for name in _ADDED}
        counted = dict(loads)
        for source, share in shares.items():
            if share:
                counted[source] = _with(loads.get(source, _NO_LOAD), means, share)
        return counted

    def _forget(self, now: float) -> None:
        for pod in [pod for pod in self._joined if not self.share(pod, now)]:
            del self._joined[pod]


def _with(load: Load, means: Mapping[str, float], share: float) -> Load:
    more: dict[str, Any] = {
        name: getattr(load, name) + round(mean * share) for name, mean in means.items()
    }
    return msgspec.structs.replace(load, **more)
