"""Pods and ranks become sources, keep their numbers while they are the same cache, and go."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents import SourceManager, SourceState, SourceView
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, payload_of, stored, tokens_of
from tests.support import eventually, free_port

ON = Settings(kv_event_sync=True, use_remote_tokenizer=True)
OFF = Settings()


class RecordingIndex(PrefixIndex):
    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[str, int | None, str | None]] = []

    def add_source(
        self, model: str, lora_id: int | None = None, lora_name: str | None = None
    ) -> int:
        self.added.append((model, lora_id, lora_name))
        return super().add_source(model, lora_id, lora_name)


class SlowIndex(RecordingIndex):
    """Its sweep of a removed source waits until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def remove_source(self, source: int) -> None:
        assert self.go_on.wait(10)
        super().remove_source(source)


class House:
    def __init__(self, settings: Settings) -> None:
        self.index = RecordingIndex()
        self.metrics = Metrics()
        self.cleared: list[int] = []
        self.manager = SourceManager(self.index, settings, self.metrics, self.cleared.append)
        self.pod: Pod | None = None

    def is_now(self, pod: Pod | None) -> None:
        self.manager.on_pod(self.pod, pod)
        self.pod = pod

    def numbers(self) -> dict[int, int]:
        """Rank → source of the pod."""
        assert self.pod is not None
        return {c.rank: c.source for c in self.manager.candidates([self.pod])}

    def only(self) -> SourceView:
        (view,) = self.manager.views()
        return view


@pytest.fixture
def house() -> Iterator[House]:
    made = House(ON)
    yield made
    made.manager.close()


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


def pod(*ranks: Rank, name: str = "a", kv_events: bool = True) -> Pod:
    return Pod(
        namespace="default",
        name=name,
        uid="uid-1",
        address="10.0.0.1:8000",
        model="m",
        kv_events=kv_events,
        ranks=ranks or (Rank(0, f"tcp://127.0.0.1:{free_port()}"),),
    )


def test_each_rank_is_a_candidate_with_a_number_of_its_own(house: House) -> None:
    house.is_now(pod(Rank(0, "tcp://127.0.0.1:1"), Rank(1, "tcp://127.0.0.1:2")))
    numbers = house.numbers()
    assert set(numbers) == {0, 1}
    assert len(set(numbers.values())) == 2


def test_the_candidate_carries_the_pod_as_it_was_asked_for(house: House) -> None:
    first = pod()
    house.is_now(first)
    changed = replace(first, labels={"a": "b"})
    (candidate,) = house.manager.candidates([changed])
    assert candidate.pod is changed


def test_an_unknown_pod_has_no_candidate(house: House) -> None:
    house.is_now(pod())
    assert house.manager.candidates([pod(name="b")]) == ()


def test_a_pod_of_the_same_name_that_is_another_engine_has_no_candidate(house: House) -> None:
    house.is_now(pod())
    assert house.manager.candidates([replace(pod(), uid="uid-2")]) == ()


@pytest.mark.parametrize(
    "change",
    [{"ready": False}, {"labels": {"x": "y"}}, {"adapters": ("l",)}, {"metrics_address": "h:1"}],
)
def test_what_leaves_the_cache_the_same_keeps_the_number(
    house: House, change: dict[str, object]
) -> None:
    first = pod()
    house.is_now(first)
    before = house.numbers()
    house.is_now(replace(first, **change))
    assert house.numbers() == before
    assert house.cleared == []


@pytest.mark.parametrize(
    "change",
    [
        {"uid": "uid-2"},
        {"address": "10.0.0.2:8000"},
        {"model": "n"},
        {"lora_id": 3},
        {"kv_events": False},
        {"ranks": (Rank(0, "tcp://127.0.0.1:9"),)},
    ],
)
def test_what_makes_it_another_cache_gives_a_new_number(
    house: House, change: dict[str, object]
) -> None:
    first = pod()
    house.is_now(first)
    (old,) = house.numbers().values()
    house.is_now(replace(first, **change))
    (new,) = house.numbers().values()
    assert new != old
    assert house.cleared == [old]
    eventually(lambda: old not in house.index.stats().per_source)
    with pytest.raises(KeyError):
        house.index.clear_source(old)


def test_a_rank_more_leaves_the_others_as_they_are(house: House) -> None:
    one, two = Rank(0, "tcp://127.0.0.1:1"), Rank(1, "tcp://127.0.0.1:2")
    house.is_now(pod(one))
    (number,) = house.numbers().values()
    house.is_now(pod(one, two))
    assert house.numbers()[0] == number
    house.is_now(pod(one))
    assert house.numbers() == {0: number}


def test_a_pod_that_is_gone_takes_its_sources_along(house: House) -> None:
    house.is_now(pod())
    (number,) = house.numbers().values()
    house.is_now(None)
    assert house.manager.views() == ()
    assert house.cleared == [number]
    eventually(lambda: house.index.stats().sources == 0)


def test_the_label_of_an_adapter_names_it_for_the_index(house: House) -> None:
    house.is_now(replace(pod(), lora_id=3))
    assert house.index.added == [("m", 3, "m")]


def test_a_pod_without_the_label_has_numbers_and_sends_no_events(house: House) -> None:
    house.is_now(pod(kv_events=False))
    house.manager.start_events()
    view = house.only()
    assert (view.state, view.usable, view.event_endpoint) == (None, False, None)
    assert not house.manager.sends_events(view.source)
    assert house.manager.synced()


def test_with_event_sync_off_there_are_numbers_and_nothing_is_followed() -> None:
    house = House(OFF)
    house.is_now(pod())
    house.manager.start_events()
    view = house.only()
    assert (view.state, view.usable, view.pod) == (None, False, "default/a")
    assert house.numbers() == {0: view.source}
    assert not house.manager.sends_events(view.source)
    assert not house.manager.usable(view.source)
    assert house.manager.synced()
    house.manager.close()


def test_nothing_is_followed_before_events_start(house: House) -> None:
    house.is_now(pod())
    view = house.only()
    assert view.state is SourceState.CONNECTING
    assert not house.manager.sends_events(view.source)
    assert not house.manager.synced()


def test_pods_known_before_and_after_the_start_are_followed(
    house: House, engine: KvPublisher
) -> None:
    engine.publish(stored([1, 2]))
    with KvPublisher() as later_engine:
        later_engine.publish(stored([1]))
        first = pod(Rank(0, engine.endpoint, engine.replay_endpoint))
        later = pod(Rank(0, later_engine.endpoint, later_engine.replay_endpoint), name="b")
        house.is_now(first)
        house.manager.start_events()
        house.manager.on_pod(None, later)
        sources = [c.source for c in house.manager.candidates([first, later])]
        tokens = tokens_of([1, 2])
        eventually(lambda: house.index.match("m", tokens) == {sources[0]: 2, sources[1]: 1})
        eventually(house.manager.synced)
        assert all(house.manager.usable(s) and house.manager.sends_events(s) for s in sources)
        view = house.manager.views()[0]
        assert (view.state, view.sequence, view.placements) == (SourceState.EXACT, 0, 2)
        assert view.event_endpoint == engine.endpoint


def test_an_engine_that_has_gone_is_seen_at_once_and_believed_for_a_while(house: House) -> None:
    with KvPublisher() as leaving:
        leaving.publish(stored([1]))
        house.is_now(pod(Rank(0, leaving.endpoint, leaving.replay_endpoint)))
        assert not house.only().connected
        house.manager.start_events()
        eventually(lambda: house.only().state is SourceState.EXACT)
        assert house.only().connected
    eventually(lambda: not house.only().connected)
    assert (house.only().state, house.only().usable) == (SourceState.EXACT, True)


def test_losing_the_label_ends_the_subscription(house: House, engine: KvPublisher) -> None:
    followed = pod(Rank(0, engine.endpoint, engine.replay_endpoint))
    house.is_now(followed)
    house.manager.start_events()
    engine.publish(stored([1]))
    eventually(lambda: house.index.stats().placements)
    house.is_now(replace(followed, kv_events=False))
    assert house.only().state is None
    eventually(lambda: house.index.stats().placements == 0)
    house.is_now(followed)
    eventually(lambda: house.only().state is SourceState.EXACT)
    assert house.index.stats().placements == 1


def test_a_source_in_its_first_sync_keeps_readiness_waiting(
    house: House, engine: KvPublisher
) -> None:
    engine.answers = False
    house.is_now(pod(Rank(0, engine.endpoint, engine.replay_endpoint)))
    house.manager.start_events()
    eventually(lambda: engine.asked_from)
    assert not house.manager.synced()
    engine.restart()
    engine.answers = True
    eventually(house.manager.synced)


def test_an_engine_that_is_not_there_does_not_keep_readiness_waiting_for_ever() -> None:
    house = House(ON.model_copy(update={"kv_lost_after_s": 0.1}))
    house.is_now(pod())
    house.manager.start_events()
    eventually(house.manager.synced)
    assert house.only().state is SourceState.LOST
    house.manager.close()


def test_the_sweep_of_a_large_source_does_not_hold_up_the_caller() -> None:
    index = SlowIndex()
    manager = SourceManager(index, ON, Metrics(), lambda source: None)
    one = pod()
    manager.on_pod(None, one)
    manager.on_pod(one, None)
    assert manager.candidates([one]) == ()
    assert index.stats().sources == 1
    index.go_on.set()
    manager.close()
    assert index.stats().sources == 0


# -- switched off and on, emptied and followed anew -------------------------------------------


def in_step(house: House, engine: KvPublisher, *hashes: int) -> int:
    """Follow an engine that holds these blocks; its source."""
    engine.publish(stored(list(hashes)))
    house.is_now(pod(Rank(0, engine.endpoint, engine.replay_endpoint)))
    house.manager.start_events()
    eventually(lambda: house.index.stats().placements == len(hashes))
    eventually(lambda: house.only().usable)
    return house.only().source


async def test_while_events_are_off_nothing_is_believed_held_or_followed(
    house: House, engine: KvPublisher
) -> None:
    source = in_step(house, engine, 1, 2)
    house.cleared.clear()
    stopping = asyncio.ensure_future(house.manager.stop_events())
    await asyncio.sleep(0)
    assert not house.manager.usable(source)
    await stopping
    assert not house.manager.following
    assert house.index.stats().placements == 0
    assert house.cleared == [source]
    assert house.numbers() == {0: source}
    view = house.only()
    assert (view.state, view.usable) == (None, False)
    assert house.manager.synced()
    engine.publish(stored([3], parent=2))
    assert house.index.stats().placements == 0


async def test_events_that_are_on_again_bring_all_back(house: House, engine: KvPublisher) -> None:
    source = in_step(house, engine, 1, 2)
    await house.manager.stop_events()
    engine.publish(stored([3], parent=2))
    house.cleared.clear()
    house.manager.start_events()
    assert house.cleared == [source], "what was promised meanwhile is void"
    assert house.manager.following
    eventually(lambda: house.only().state is SourceState.EXACT)
    assert house.index.match("m", tokens_of([1, 2, 3])) == {source: 3}


async def test_pods_may_come_and_go_while_events_are_off(house: House, engine: KvPublisher) -> None:
    in_step(house, engine, 1)
    await house.manager.stop_events()
    house.is_now(None)
    house.is_now(pod(Rank(0, engine.endpoint, engine.replay_endpoint), name="b"))
    house.manager.start_events()
    eventually(lambda: house.only().state is SourceState.EXACT)
    assert house.index.stats().placements == 1


async def test_events_can_be_stopped_twice_and_before_they_start(house: House) -> None:
    house.is_now(pod())
    await house.manager.stop_events()
    await house.manager.stop_events()
    house.manager.start_events()
    assert house.manager.sends_events(house.only().source)


async def test_one_source_is_emptied_and_followed_anew(house: House, engine: KvPublisher) -> None:
    source = in_step(house, engine, 1, 2)
    house.cleared.clear()
    asked = len(engine.asked_from)
    await house.manager.resync("default/a", 0)
    assert house.cleared == [source]
    eventually(lambda: house.only().state is SourceState.EXACT)
    assert house.index.match("m", tokens_of([1, 2])) == {source: 2}
    assert engine.asked_from[asked:][0] == 0
    cleared = house.metrics.registry.get_sample_value(
        "aibrix_kv_source_clears_total", {"reason": "operator"}
    )
    assert cleared == 1


async def test_what_the_engine_never_held_is_gone_after_a_resync(
    house: House, engine: KvPublisher
) -> None:
    source = in_step(house, engine, 1)
    house.index.apply(source, payload_of(stored([9])))
    assert house.index.match("m", tokens_of([9])) == {source: 1}
    await house.manager.resync("default/a", 0)
    eventually(lambda: house.only().state is SourceState.EXACT)
    assert house.index.match("m", tokens_of([9])) == {}


async def test_a_source_that_goes_during_its_resync_is_not_followed_again(
    house: House, engine: KvPublisher
) -> None:
    source = in_step(house, engine, 1)
    resync = asyncio.ensure_future(house.manager.resync("default/a", 0))
    await asyncio.sleep(0)
    house.is_now(None)
    await resync
    assert not house.manager.sends_events(source)
    eventually(lambda: house.index.stats().sources == 0)


async def test_only_a_source_that_is_followed_can_be_synced_anew(house: House) -> None:
    house.is_now(pod())
    with pytest.raises(KeyError):
        await house.manager.resync("default/b", 0)
    with pytest.raises(KeyError):
        await house.manager.resync("default/a", 1)
    with pytest.raises(ValueError, match="not followed"):
        await house.manager.resync("default/a", 0)
