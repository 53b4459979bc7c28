"""Event sync over real ZMQ, with the real index."""

from collections.abc import Callable, Iterator

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, stored, tokens_of
from tests.support import eventually

MODEL = "m"
POD = "default/pod-0"
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


class Station:
    """A subscriber with its index and metrics."""

    def __init__(self, index: PrefixIndex | None = None, **settings: float) -> None:
        self.index = index or PrefixIndex()
        self.metrics = Metrics()
        self.cleared: list[int] = []
        values: dict[str, float] = {"kv_replay_timeout_s": 0.5, "kv_lost_after_s": 30.0}
        self.new_engines: list[str] = []
        self.subscriber = Subscriber(
            self.index,
            Settings(**(values | settings)),
            self.metrics,
            self.cleared.append,
            self.new_engines.append,
        )

    def follow(self, engine: KvPublisher, *, rank: int = 0, replay: bool = True) -> int:
        source = self.index.add_source(MODEL)
        endpoint = engine.replay_endpoint if replay else None
        self.subscriber.add(source, POD, Rank(rank, engine.endpoint, endpoint))
        return source

    def remove(self, source: int) -> None:
        self.subscriber.remove(source)
        self.index.remove_source(source)

    def state(self, source: int) -> SourceState:
        feed = self.subscriber.feed(source)
        assert feed is not None
        return feed.sync.state

    def depth(self, source: int, blocks: int = 64) -> int:
        """Blocks of the prompt 1, 2, … that the source holds."""
        return self.index.match(MODEL, tokens_of(range(1, blocks + 1))).get(source, 0)

    def reaches(self, source: int, state: SourceState, depth: int) -> None:
        def there() -> bool:
            return (self.state(source), self.depth(source)) == (state, depth)

        try:
            eventually(there)
        except AssertionError:
            found = (self.state(source), self.depth(source))
            raise AssertionError(f"{found} instead of {(state, depth)}") from None

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def count_of(self, name: str) -> float:
        return self.count(name, pod=POD, rank="0")


@pytest.fixture
def stations() -> Iterator[Callable[..., Station]]:
    made: list[Station] = []

    def make(index: PrefixIndex | None = None, **settings: float) -> Station:
        made.append(Station(index, **settings))
        return made[-1]

    yield make
    for station in made:
        station.subscriber.close()


@pytest.fixture
def station(stations: Callable[..., Station]) -> Station:
    return stations()


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


def fill(engine: KvPublisher, first: int, last: int) -> None:
    """One batch for each of these blocks of the prompt 1, 2, …"""
    for block in range(first, last + 1):
        engine.publish(stored([block], parent=block - 1 or None))
