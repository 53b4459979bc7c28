"""Snapshots of a process: saved from sources that are followed, claimed by those that come back."""

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.kvevents import SourceManager, SourceState, SourceView
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.snapshot import Snapshots, files, service
from aibrix_extproc.snapshot.format import Encoder
from tests.backends import NewIndex, new_index
from tests.kv_publisher import KvPublisher, stored, tokens_of
from tests.support import eventually, eventually_async

__all__ = ["new_index"]

EXACT = SourceState.EXACT
MODEL = "m"


class Process:
    """One processor, as far as snapshots concern it."""

    def __init__(self, new_index: NewIndex, settings: Settings, from_peer: str = "") -> None:
        self.index = new_index(settings.kv_index_max_bytes)
        self.metrics = Metrics()
        self.manager = SourceManager(self.index, settings, self.metrics, lambda source: None)
        self.snapshots = Snapshots(settings, self.metrics, self.index, self.manager, from_peer)

    async def start(self, *pods: Pod) -> "Process":
        for pod in pods:
            self.manager.on_pod(None, pod)
        await self.snapshots.open()
        self.manager.start_events()
        return self

    async def end(self) -> None:
        await self.snapshots.close()
        self.manager.close()

    def view(self) -> SourceView:
        (view,) = self.manager.views()
        return view

    def reaches(self, sequence: int | None, placements: int) -> SourceView:
        """Wait until the only source is EXACT, has applied this batch and holds so many blocks."""

        def there() -> SourceView | None:
            view = self.view()
            found = (view.state, view.sequence, view.placements)
            return view if found == (EXACT, sequence, placements) else None

        return eventually(there, timeout_s=30)

    def follows(self, engine: KvPublisher, batches: int) -> None:
        """Its engine publishes so many, and all of them arrive.

        A subscription may come to a publisher after the answer to a replay: the first two, which
        the engine's buffer holds, are then asked for again. Of more some would be lost for good.
        """
        publish(engine, 2)
        self.reaches(1, 2)
        publish(engine, batches - 2)
        self.reaches(batches - 1, batches)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def opened(self, result: str, origin: str = "file") -> float:
        return self.count("aibrix_kv_snapshots_opened_total", origin=origin, result=result)

    def sources(self, result: str) -> float:
        return self.count("aibrix_kv_snapshot_sources_total", result=result)


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    """Its buffer holds two batches: a replay from the start brings next to nothing back."""
    with KvPublisher(buffer_steps=2) as publisher:
        yield publisher


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        kv_event_sync=True,
        use_remote_tokenizer=True,
        kv_snapshot_path=str(tmp_path / "index.snapshot"),
        kv_index_max_bytes=1_000_000,
        kv_replay_timeout_s=30.0,
    )


@pytest.fixture
async def process(new_index: NewIndex, settings: Settings) -> AsyncIterator[Callable[..., Process]]:
    """Makes processes with these settings, or changed ones."""
    made: list[Process] = []

    def make(from_peer: str = "", **changes: object) -> Process:
        made.append(Process(new_index, settings.model_copy(update=changes), from_peer))
        return made[-1]

    yield make
    for one in made:
        await one.end()


def pod_of(engine: KvPublisher, **changes: object) -> Pod:
    pod = Pod(
        namespace="default",
        name="a",
        uid="uid-1",
        address="10.0.0.1:8000",
        model=MODEL,
        kv_events=True,
        ranks=(Rank(0, engine.endpoint, engine.replay_endpoint),),
    )
    return replace(pod, **changes)  # type: ignore[arg-type]


def publish(engine: KvPublisher, batches: int) -> None:
    for number in range(batches):
        before = engine.next_number
        engine.publish(stored([before + 1], parent=before or None))
        assert number < batches


Make = Callable[..., Process]


async def test_a_source_goes_on_where_it_was(process: Make, engine: KvPublisher) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()
    publish(engine, 1)

    after = await process().start(pod_of(engine))
    view = after.reaches(6, 7)
    assert after.index.match(MODEL, tokens_of(range(1, 8))) == {view.source: 7}
    assert (after.opened("read"), after.sources("imported")) == (1, 1)
    assert engine.asked_from[-1] == 5


async def test_a_pod_that_comes_later_takes_over_too(process: Make, engine: KvPublisher) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()

    after = await process().start()
    after.manager.on_pod(None, pod_of(engine))
    after.reaches(5, 6)


async def test_what_nobody_has_claimed_yet_is_saved_again(
    process: Make, engine: KvPublisher
) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()

    await (await process().start()).snapshots.save()
    after = await process().start(pod_of(engine))
    after.reaches(5, 6)


@pytest.mark.parametrize(
    "changes",
    [{"uid": "uid-2"}, {"address": "10.0.0.2:8000"}, {"model": "n"}, {"name": "b"}, {"lora_id": 1}],
    ids=lambda changes: next(iter(changes)),
)
async def test_another_cache_takes_nothing_over(
    process: Make, engine: KvPublisher, changes: dict[str, object]
) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()

    after = await process().start(pod_of(engine, **changes))
    eventually(lambda: after.view().state is SourceState.PARTIAL)
    assert after.view().placements <= 2
    await after.snapshots.close()
    assert (after.sources("imported"), after.sources("unclaimed")) == (0, 1)


async def test_an_engine_without_a_replay_port_is_not_saved(
    process: Make, engine: KvPublisher
) -> None:
    alone = pod_of(engine, ranks=(Rank(0, engine.endpoint),))
    before = await process().start(alone)
    eventually(lambda: before.view().state is SourceState.PARTIAL)
    publish(engine, 3)
    eventually(lambda: before.view().placements > 0)
    await before.snapshots.save()
    after = process()
    await after.snapshots.open()
    await after.snapshots.close()
    assert (after.opened("read"), after.sources("unclaimed")) == (1, 0)


async def test_a_source_that_was_full_starts_clean_where_there_is_more_room(
    process: Make, engine: KvPublisher
) -> None:
    small = {"kv_index_max_bytes": 500}
    before = await process(**small).start(pod_of(engine))
    before.reaches(None, 0)
    engine.publish(stored(list(range(1, 101))))
    eventually(lambda: before.index.stats().full_sources)
    held = before.view().placements
    assert 0 < held < 100
    await before.snapshots.save()

    same = await process(**small).start(pod_of(engine))
    eventually(lambda: same.view().placements == held)
    assert same.sources("imported") == 1
    larger = await process().start(pod_of(engine))
    larger.reaches(0, 100)
    assert larger.sources("full") == 1


async def test_a_source_that_does_not_fit_is_taken_in_part_and_says_so(
    process: Make, engine: KvPublisher
) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    engine.publish(stored(list(range(1, 101))))
    before.reaches(0, 100)
    await before.snapshots.save()

    small = await process(kv_index_max_bytes=500).start(pod_of(engine))
    eventually(lambda: small.view().state is SourceState.PARTIAL)
    assert small.view().full
    assert 0 < small.view().placements < 100
    assert small.sources("imported") == 1


async def test_a_record_whose_export_is_none_costs_its_source_alone(
    process: Make, engine: KvPublisher, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    publish(engine, 2)
    before.reaches(1, 2)
    await before.snapshots.save()
    path = Path(settings.kv_snapshot_path)
    opened = files.open_snapshot(path)
    assert opened is not None
    encoder = Encoder(time.time(), 0)
    (record,) = opened.contents.records
    files.write(path, [encoder.start(), encoder.record(record.head, b"nonsense"), encoder.end()])
    opened.close()

    after = await process().start(pod_of(engine))
    after.reaches(1, 2)
    assert after.sources("refused") == 1
    assert "default/a rank 0 starts clean: these bytes are no export" in caplog.text


# -- the file -------------------------------------------------------------------------------------


async def test_a_first_start_has_no_file(process: Make, engine: KvPublisher) -> None:
    first = await process().start(pod_of(engine))
    first.reaches(None, 0)
    assert first.opened("missing") == 1


@pytest.mark.parametrize(
    ("data", "result"), [(b"what is this?", "foreign"), (b"AIBKVSNP\x07\0\0\0", "version")]
)
async def test_a_file_that_is_no_snapshot_does_not_stop_the_start(
    process: Make,
    engine: KvPublisher,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    result: str,
) -> None:
    files.write(Path(settings.kv_snapshot_path), [data])
    one = await process().start(pod_of(engine))
    one.reaches(None, 0)
    assert one.opened(result) == 1
    assert f"the snapshot {settings.kv_snapshot_path} is not used: it" in caplog.text


async def test_an_old_file_is_refused(
    process: Make, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    for written_at in (time.time() - 3700, float("nan")):
        encoder = Encoder(written_at, 0)
        files.write(Path(settings.kv_snapshot_path), [encoder.start(), encoder.end()])
        one = await process().start()
        assert one.opened("old") == 1
    assert "it was written 3700 s ago" in caplog.text


async def test_a_file_of_the_future_is_taken_for_a_clock_that_was_set_back(
    process: Make, settings: Settings
) -> None:
    encoder = Encoder(time.time() + 86_400, 0)
    files.write(Path(settings.kv_snapshot_path), [encoder.start(), encoder.end()])
    assert (await process().start()).opened("read") == 1


async def test_a_disk_that_fails_is_told_once_and_counted(
    process: Make, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    one = await process().start()
    path = settings.kv_snapshot_path
    caplog.set_level(logging.INFO)
    os.mkdir(path)
    await one.snapshots.save()
    await one.snapshots.save()
    os.rmdir(path)
    await one.snapshots.save()
    assert one.count("aibrix_kv_snapshot_saves_total", result="failed") == 2
    assert one.count("aibrix_kv_snapshot_saves_total", result="saved") == 1
    assert one.count("aibrix_kv_snapshot_bytes") == os.stat(path).st_size
    assert caplog.text.count("ok → not saved") == 1
    assert caplog.text.count("not saved → ok") == 1


async def test_it_is_saved_every_so_often(process: Make, settings: Settings) -> None:
    one = await process(kv_snapshot_interval_s=0.02).start()
    one.snapshots.start()
    await eventually_async(lambda: one.count("aibrix_kv_snapshot_saves_total", result="saved") >= 2)


async def test_what_is_not_claimed_in_time_is_dropped(
    process: Make, engine: KvPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()
    monkeypatch.setattr(service, "KEPT_S", 0.01)
    after = await process(kv_snapshot_interval_s=0).start()
    after.snapshots.start()
    await eventually_async(lambda: after.sources("unclaimed") == 1)
    after.manager.on_pod(None, pod_of(engine))
    eventually(lambda: after.view().state is SourceState.PARTIAL)
    assert after.view().placements <= 2


def test_a_path_that_cannot_be_written_stops_the_start(process: Make, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="AIBRIX_KV_SNAPSHOT_PATH"):
        process(kv_snapshot_path=str(tmp_path / "no" / "index.snapshot"))


async def test_without_event_sync_nothing_is_saved_or_taken_over(
    process: Make, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    one = await process(kv_event_sync=False).start()
    await one.snapshots.save()
    assert files.open_snapshot(Path(settings.kv_snapshot_path)) is None
    assert "event sync is off: nothing is saved" in caplog.text


async def test_a_peer_that_fails_leaves_the_own_file(process: Make, engine: KvPublisher) -> None:
    before = await process().start(pod_of(engine))
    before.reaches(None, 0)
    before.follows(engine, 6)
    await before.snapshots.save()
    after = await process("http://127.0.0.1:9").start(pod_of(engine))
    after.reaches(5, 6)
    assert (after.opened("unreadable", "peer"), after.opened("read")) == (1, 1)
