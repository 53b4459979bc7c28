"""A source may not hold more blocks than its engine has."""

from collections.abc import Iterator

import pytest

from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.kvevents.capacity import Capacity, read_capacities
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.backends import NewIndex, new_index
from tests.kv_publisher import KvPublisher, stored
from tests.support import eventually

__all__ = ["new_index"]


def page(*ranks: tuple[str, str]) -> bytes:
    lines = [
        f'vllm:cache_config_info{{block_size="16",cache_dtype="auto",engine="{engine}",'
        f'num_gpu_blocks="{blocks}",num_gpu_blocks_override="None"}} 1.0'
        for engine, blocks in ranks
    ]
    return "\n".join(["# TYPE vllm:cache_config_info gauge", *lines, ""]).encode()


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


def test_each_rank_has_its_own_capacity() -> None:
    capacities = read_capacities(page(("0", "100"), ("1", "200")))
    assert capacities == {0: Capacity(100, 16), 1: Capacity(200, 16)}


@pytest.mark.parametrize("exposition", [b"", b"up 1\n", page(("0", "None")), page(("0", "0"))])
def test_a_page_that_does_not_say_is_no_limit(exposition: bytes) -> None:
    assert read_capacities(exposition) == {}


@pytest.mark.parametrize(
    ("placements", "block_size", "too_much"),
    [
        (100, 16, False),
        (101, 16, True),
        (400, 4, False),
        (401, 4, True),
        (100, 32, False),
        (101, 32, True),
        (100, None, False),
        (101, None, True),
    ],
)
def test_blocks_of_another_size_are_compared_by_their_tokens(
    placements: int, block_size: int | None, too_much: bool
) -> None:
    assert Capacity(100, 16).holds_too_much(placements, block_size) is too_much


def test_a_source_that_holds_more_than_its_engine_has_is_emptied_and_goes_on(
    new_index: NewIndex, engine: KvPublisher
) -> None:
    metrics, index = Metrics(), new_index()
    manager = SourceManager(
        index, Settings(kv_event_sync=True, use_remote_tokenizer=True), metrics, lambda source: None
    )
    rank = Rank(0, engine.endpoint, engine.replay_endpoint)
    pod = Pod("default", "p", "uid", "127.0.0.1:1", "m", kv_events=True, ranks=(rank,))
    manager.on_pod(None, pod)
    manager.start_events()
    try:
        for _ in range(3):
            engine.publish(stored(list(range(1, 11))))
        eventually(lambda: index.stats().placements == 30)
        manager.engine_metrics(pod, page(("0", "8")))  # 8 blocks of 16 tokens: 32 of 4
        manager.engine_metrics(pod, page(("0", "7")))
        eventually(lambda: index.stats().placements == 0)
        name, labels = "aibrix_kv_source_clears_total", {"reason": "inflated"}
        assert metrics.registry.get_sample_value(name, labels) == 1
        engine.publish(stored([50]))
        eventually(lambda: index.stats().placements == 1)
    finally:
        manager.close()
