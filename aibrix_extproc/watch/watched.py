"""The sources that are watched through event sync: an index, and a feed and a tally for each.

Owns what sockets and recordings have in common: who is watched, the rows, and the look at what
the index holds. Where the messages come from is for `live` and `playback`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import open_index
from aibrix_extproc.index.names import Names
from aibrix_extproc.index.saved import decode
from aibrix_extproc.kvevents.feed import Feed
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.chains import Chains, Room
from aibrix_extproc.watch.holdings import Held, Holdings, held_by, holdings
from aibrix_extproc.watch.rows import Row
from aibrix_extproc.watch.tally import Tally
from aibrix_extproc.watch.words import readable

NO_MODEL: Final = ""
"""Of sources whose model nobody told: they are compared with each other."""


@dataclass(frozen=True, slots=True)
class Target:
    """One source to watch."""

    name: str
    rank: Rank
    model: str = NO_MODEL
    lora_id: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One source that is watched."""

    target: Target
    number: int
    """In the index."""
    chains: Chains
    tally: Tally
    feed: Feed


class Watched:
    """All of them. Rows may be asked for from one thread while others feed."""

    def __init__(
        self, settings: Settings, wall: Callable[[float], float], *, with_tokens: bool = False
    ) -> None:
        """`wall(now)`: seconds since the epoch at that time of the feeds' clock."""
        self.entries: list[Entry] = []
        self._settings = settings
        self._wall = wall
        self._metrics = Metrics()
        self._room = Room(with_tokens=with_tokens)
        _, self._index = open_index(None, settings.kv_index_max_bytes, settings.kv_max_orphans)
        self._looks: dict[str, tuple[int, Held]] = {}
        self._holdings: Holdings | None = None

    def add(self, target: Target, tally_of: "MakeTally" = Tally) -> Entry:
        """Watch one more, whose name is no other's."""
        adapter = target.model if target.lora_id is not None else None
        number = self._index.add_source(target.model, target.lora_id, adapter)
        seed = decode(self._index.export_source(number)).seed
        chains = Chains(Names(seed), self._room)
        tally = tally_of(
            target.name,
            chains,
            self._wall,
            endpoint=target.rank.event_endpoint,
            model=target.model or None,
        )
        feed = Feed(
            number,
            target.name,
            target.rank,
            self._index,
            self._settings,
            self._metrics,
            on_clear=lambda source: None,
            tap=tally,
        )
        entry = Entry(target, number, chains, tally, feed)
        self.entries.append(entry)
        return entry

    def rows(self, now: float) -> tuple[Row, ...]:
        """Every source at this time of the feeds' clock."""
        stats = self._index.stats()
        known = self._holdings.orphans if self._holdings else {}
        return tuple(
            entry.tally.row(
                now,
                held=stats.per_source.get(entry.number, 0),
                orphans=known.get(entry.target.name),
                waiting_bytes=entry.feed.sync.pending_bytes,
                full=entry.number in stats.full_sources,
            )
            for entry in self.entries
        )

    @property
    def holdings(self) -> Holdings | None:
        """What the last look found; None before the first."""
        return self._holdings

    def look(self) -> Holdings:
        """Look at what every source holds. Takes about a microsecond a block; one at a time."""
        for entry in self.entries:
            name, changes = entry.target.name, entry.tally.changes
            before = self._looks.get(name)
            if before is None or before[0] != changes:
                saved = decode(self._index.export_source(entry.number))
                self._looks[name] = (changes, held_by(name, entry.target.model, saved))
        chains: Mapping[str, Chains] = {e.target.name: e.chains for e in self.entries}
        self._holdings = holdings([held for _, held in self._looks.values()], chains)
        return self._holdings

    def past_first_sync(self) -> bool:
        """Every source has got past its first sync, or is LOST."""
        return all(entry.feed.sync.first_sync_done for entry in self.entries)


MakeTally = Callable[..., Tally]


class Pace:
    """When it is time to look again: at most a tenth of the time goes into looking."""

    def __init__(self, least_s: float = 2.0) -> None:
        self._least_s = least_s
        self._next_at = 0.0

    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next_at

    def took(self, seconds: float) -> None:
        """A look ended just now, after so long."""
        self._next_at = time.monotonic() + max(self._least_s, 10 * seconds)


def unique(targets: Sequence[Target]) -> list[Target]:
    """The targets with names that differ: a second `a` is `a (2)`."""
    taken: set[str] = set()
    named = []
    for target in targets:
        name = wanted = readable(target.name)
        times = 1
        while name in taken:
            times += 1
            name = f"{wanted} ({times})"
        taken.add(name)
        named.append(replace(target, name=name))
    return named
