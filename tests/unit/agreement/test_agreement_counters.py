"""The engines' own counters of reuse are read, and their growth taken."""

import pytest

from aibrix_extproc.agreement.counters import NOTHING, Counted, Growth, read_counters

POD = ("default/a", "uid", "10.0.0.1:8000")


@pytest.mark.parametrize(
    "names",
    [
        ("prefix_cache_queries_total", "prefix_cache_hits_total"),
        ("gpu_prefix_cache_queries_total", "gpu_prefix_cache_hits_total"),
        ("prefix_cache_queries", "prefix_cache_hits"),
    ],
)
def test_ranks_are_added_up_under_every_name(names: tuple[str, str]) -> None:
    text = "".join(
        f"# TYPE vllm:{name} counter\n"
        f'vllm:{name}{{engine="0",model_name="m"}} {1.5e3}\n'
        f'vllm:{name}{{engine="1",model_name="m"}} 40.0\n'
        f'vllm:{name.removesuffix("_total")}_created{{engine="0"}} 1.7e9\n'
        for name in names
    )
    assert read_counters(text.encode()) == Counted(1540, 1540)


def test_other_series_are_not_taken_for_them() -> None:
    text = (
        "vllm:external_prefix_cache_queries_total 7\n"
        "vllm:mm_cache_hits_total 7\n"
        "vllm:prefix_cache_queries_total 5\n"
    )
    assert read_counters(text.encode()) is None
    assert read_counters(b"\xff\x00 nonsense") is None
    assert read_counters(b"vllm:prefix_cache_queries 1e\nvllm:prefix_cache_hits 1\n") is None


def test_growth_begins_with_the_second_reading() -> None:
    growth = Growth()
    assert growth.read(POD, Counted(100, 50)) == NOTHING
    assert growth.read(POD, Counted(160, 90)) == Counted(60, 40)


def test_a_counter_that_went_down_is_a_new_engine() -> None:
    growth = Growth()
    growth.read(POD, Counted(100, 50))
    assert growth.read(POD, Counted(30, 10)) == Counted(30, 10)


def test_another_pod_under_the_same_name_begins_anew() -> None:
    growth = Growth()
    growth.read(POD, Counted(100, 50))
    assert growth.read(("default/a", "uid2", "10.0.0.2:8000"), Counted(130, 60)) == NOTHING
    growth.keep_only(set())
    assert growth.read(POD, Counted(200, 70)) == NOTHING


def test_the_share_of_nothing_is_not_known() -> None:
    assert NOTHING.share is None
    assert (Counted(60, 40) + Counted(40, 10)).share == 0.5
