"""Which candidate a session belongs to: rendezvous hashing, the same in every process.

Pure. Each candidate has a weight for each session, and a session belongs to the one with the
highest (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). So a
candidate that comes takes only sessions that are its own from then on, about one of n, and one
that goes leaves its own to each session's next; between others none moves.

The weight is `xxh64(session, seed=xxh64("namespace/name/rank"))`, of UTF-8 bytes: a fixed function,
unlike Python's `hash`, so replicas of this server that share nothing agree, and so do those before
and after a restart. A candidate is its pod's name and its rank, not its address: a pod of a
StatefulSet that starts anew has another address and the same name, and gets its sessions back; of
a Deployment both are new.
"""

from collections.abc import Sequence
from typing import Final

from xxhash import xxh64_intdigest

from aibrix_extproc.routing.types import Candidate

_SEEDS_KEPT: Final = 4096


class Rendezvous:
    """Orders candidates for a session. It keeps seeds of candidates, and nothing of sessions."""

    def __init__(self) -> None:
        self._seeds: dict[int, int] = {}
        """By source: a number that never means another candidate."""

    def order(self, session: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """All of them, the one that the session belongs to first, then its second, and so on."""
        name = session.encode("utf-8", "surrogatepass")
        if len(self._seeds) > _SEEDS_KEPT + len(candidates):
            self._seeds.clear()
        seeds, weighed = self._seeds, []
        for place, candidate in enumerate(candidates):
            seed = seeds.get(candidate.source)
            if seed is None:
                seed = seeds[candidate.source] = candidate_seed(candidate)
            weighed.append((-xxh64_intdigest(name, seed), place))
        weighed.sort()
        return [candidates[place] for _, place in weighed]


def candidate_seed(candidate: Candidate) -> int:
    """The hash of a candidate's name."""
    return xxh64_intdigest(f"{candidate.pod.key}/{candidate.rank}".encode())
