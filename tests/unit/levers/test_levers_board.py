"""The levers: what each changes, what is told of it, and what cannot be moved."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from aibrix_extproc import logs
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.levers import LeverBoard, LeverRefused
from aibrix_extproc.levers.board import HISTORY_MOVES
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.setting_server import LogLevel
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, stored
from tests.support import eventually_async

ON = Settings(kv_event_sync=True, use_remote_tokenizer=True)
WHO = "10.9.8.7"


class House:
    """A board over a real registry and manager."""

    def __init__(self, settings: Settings = ON) -> None:
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.index = PrefixIndex()
        self.manager = SourceManager(self.index, settings, self.metrics, lambda source: None)
        self.registry.subscribe(self.manager.on_pod)
        self.board = LeverBoard(settings, self.metrics, self.registry, self.manager)
        self.registry.subscribe(self.board.on_pod)

    def off_default(self, lever: str) -> float | None:
        return self.metrics.registry.get_sample_value("aibrix_extproc_lever", {"lever": lever})

    def pulls(self, lever: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            "aibrix_extproc_lever_pulls_total", {"lever": lever}
        )


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await asyncio.to_thread(made.manager.close)


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


@pytest.fixture(autouse=True)
def usual_log_level() -> Iterator[None]:
    before = logging.getLogger().level
    audit = logging.getLogger(logs.AUDIT)
    audit.setLevel(logging.INFO)
    yield
    logging.getLogger().setLevel(before)


def pod(engine: KvPublisher | None = None, name: str = "a", **fields: str) -> Pod:
    endpoints = (engine.endpoint, engine.replay_endpoint) if engine else (None, None)
    return Pod(
        "default",
        name,
        fields.get("uid", f"uid-{name}"),
        f"10.0.0.{ord(name)}:8000",
        "m",
        kv_events=engine is not None,
        ranks=(Rank(0, *endpoints),),
    )


def test_at_the_start_every_lever_is_at_its_default_and_the_metric_says_so() -> None:
    house = House()
    board = house.board
    assert (board.event_sync, board.shadow, board.pods_out()) == (True, False, ())
    assert board.log_level is LogLevel.INFO
    for lever in ("event-sync", "shadow", "pod-out", "log-level", "overload"):
        assert house.off_default(lever) == 0
    assert board.history() == ()


async def test_event_sync_goes_off_and_on_again(house: House, engine: KvPublisher) -> None:
    engine.publish(stored([1]))
    house.registry.replace([pod(engine)])
    house.manager.start_events()
    await eventually_async(lambda: house.index.stats().placements == 1)
    assert await house.board.set_event_sync(False, WHO)
    assert house.index.stats().placements == 0
    assert not house.manager.following
    assert house.off_default("event-sync") == 1
    assert await house.board.set_event_sync(True, WHO)
    await eventually_async(lambda: house.index.stats().placements == 1)
    assert house.off_default("event-sync") == 0
    assert house.pulls("event-sync") == 2


async def test_off_and_on_at_the_same_moment_end_as_the_last_one_said(
    house: House, engine: KvPublisher
) -> None:
    engine.publish(stored([1]))
    house.registry.replace([pod(engine)])
    house.manager.start_events()
    await asyncio.gather(
        *(house.board.set_event_sync(on, WHO) for on in (False, True, False, True))
    )
    assert house.manager.following
    await eventually_async(lambda: house.index.stats().placements == 1)


async def test_the_lever_does_not_switch_on_what_the_setting_has_off() -> None:
    house = House(Settings())
    with pytest.raises(LeverRefused, match="AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"):
        await house.board.set_event_sync(True, WHO)
    assert not await house.board.set_event_sync(False, WHO)
    assert house.off_default("event-sync") == 0
    house.manager.close()


async def test_a_lever_that_stands_so_already_is_neither_counted_nor_told(house: House) -> None:
    assert not await house.board.set_shadow(False, WHO)
    assert not await house.board.set_event_sync(True, WHO)
    assert not await house.board.set_log_level(LogLevel.INFO, WHO)
    assert house.board.history() == ()
    assert house.pulls("shadow") is None


async def test_shadow_mode_shows_in_the_metric(house: House) -> None:
    assert await house.board.set_shadow(True, WHO)
    assert (house.board.shadow, house.off_default("shadow")) == (True, 1)
    assert await house.board.set_shadow(False, WHO)
    assert (house.board.shadow, house.off_default("shadow")) == (False, 0)


async def test_overload_goes_off_and_on_again_where_there_is_a_limit() -> None:
    house = House(Settings(max_start_delay_s=2.0))
    assert house.board.overload
    assert await house.board.set_overload(False, WHO)
    assert (house.board.overload, house.off_default("overload")) == (False, 1)
    assert not await house.board.set_overload(False, WHO)
    assert await house.board.set_overload(True, WHO)
    assert (house.board.overload, house.off_default("overload")) == (True, 0)
    assert house.pulls("overload") == 2
    house.manager.close()


async def test_without_a_limit_overload_cannot_be_switched_on(house: House) -> None:
    with pytest.raises(LeverRefused, match="AIBRIX_EXTPROC_MAX_START_DELAY"):
        await house.board.set_overload(True, WHO)
    assert not house.board.overload


async def test_pods_that_are_out_are_listed_and_counted(house: House) -> None:
    house.registry.replace([pod(name="a"), pod(name="b")])
    assert await house.board.set_pod_out("default/a", True, WHO)
    assert await house.board.set_pod_out("default/b", True, WHO)
    assert house.board.pods_out() == ("default/a", "default/b")
    assert house.off_default("pod-out") == 2
    assert await house.board.set_pod_out("default/a", False, WHO)
    house.registry.replace([pod(name="a"), pod(name="b", uid="new")])
    assert house.off_default("pod-out") == 0


async def test_a_pod_that_is_not_known_is_refused_by_name(house: House) -> None:
    for move in (house.board.set_pod_out("x/y", True, WHO), house.board.resync("x/y", 0, WHO)):
        with pytest.raises(LeverRefused, match="x/y") as caught:
            await move
        assert caught.value.unknown


async def test_a_source_is_synced_anew_and_its_state_before_is_told(
    house: House, engine: KvPublisher
) -> None:
    engine.publish(stored([1]))
    house.registry.replace([pod(engine)])
    house.manager.start_events()
    await eventually_async(lambda: house.manager.views()[0].state == "EXACT")
    await house.board.resync("default/a", 0, WHO)
    (pull,) = house.board.history()
    assert (pull.lever, pull.what, pull.before) == ("resync", "default/a rank 0", "EXACT")
    await eventually_async(lambda: house.manager.views()[0].state == "EXACT")


async def test_a_source_without_events_has_nothing_to_sync(house: House) -> None:
    house.registry.replace([pod()])
    house.manager.start_events()
    with pytest.raises(LeverRefused, match="sends no events") as caught:
        await house.board.resync("default/a", 0, WHO)
    assert not caught.value.unknown
    assert house.board.history() == ()


async def test_the_log_level_changes_for_all_loggers(house: House) -> None:
    other = logging.getLogger("aibrix_extproc.kvevents.feed")
    logging.getLogger().setLevel(logging.INFO)
    assert not other.isEnabledFor(logging.DEBUG)
    assert await house.board.set_log_level(LogLevel.DEBUG, WHO)
    assert other.isEnabledFor(logging.DEBUG)
    assert house.off_default("log-level") == 1


async def test_every_move_is_logged_with_who_and_what_at_any_log_level(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.board.set_log_level(LogLevel.ERROR, WHO)
    house.registry.replace([pod()])
    await house.board.set_shadow(True, WHO)
    await house.board.set_pod_out("default/a", True, WHO)
    lines = [record.getMessage() for record in caplog.records if record.name == logs.AUDIT]
    assert lines == [
        "lever log-level: INFO → ERROR (by 10.9.8.7)",
        "lever shadow: off → on (by 10.9.8.7)",
        "lever pod-out of default/a: in → out (by 10.9.8.7)",
    ]


async def test_the_last_moves_are_remembered_the_newest_first(house: House) -> None:
    for number in range(HISTORY_MOVES + 2):
        await house.board.set_shadow(number % 2 == 0, WHO)
    history = house.board.history()
    assert len(history) == HISTORY_MOVES
    assert (history[0].before, history[0].after, history[0].who) == ("on", "off", WHO)


async def test_picks_of_a_pod_that_has_gone_leave_no_series(house: House) -> None:
    house.registry.replace([pod()])
    house.metrics.shadow_picks.labels("default/a").inc()
    house.registry.replace([])
    assert "default/a" not in str(list(house.metrics.shadow_picks.collect()))
