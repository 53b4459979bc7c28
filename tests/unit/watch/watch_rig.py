"""A station over real sockets, and engines that publish as vLLM does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.live import Live
from aibrix_extproc.watch.recorder import Recorder
from aibrix_extproc.watch.rows import Row
from aibrix_extproc.watch.watched import Target
from tests.kv_publisher import KvPublisher
from tests.support import eventually


def target(name: str, engine: KvPublisher, *, replay: bool = True) -> Target:
    endpoint = engine.replay_endpoint if replay else None
    return Target(name, Rank(0, engine.endpoint, endpoint))


@contextmanager
def watching(
    *targets: Target, record: Path | None = None, limit_bytes: int = 0, **settings: float
) -> Iterator[Live]:
    recorder = Recorder(record, limit_bytes) if record is not None else None
    values: dict[str, float] = {"kv_replay_timeout_s": 0.5, "kv_lost_after_s": 30.0}
    station = Live(targets, Settings(**(values | settings)), recorder)
    station.start()
    try:
        yield station
    finally:
        station.close()


def row_of(station: Live, name: str) -> Row:
    return next(row for row in station.view().rows if row.name == name)


def becomes(station: Live, name: str, check: Callable[[Row], bool]) -> Row:
    """The row once it fits."""

    def there() -> Row | None:
        row = row_of(station, name)
        return row if check(row) else None

    row = eventually(there)
    assert row is not None
    return row


def connected(station: Live) -> None:
    """Every source is subscribed: what is published from now on arrives."""
    eventually(lambda: all(row.connected for row in station.view().rows))


EXACT, PARTIAL = SourceState.EXACT, SourceState.PARTIAL
