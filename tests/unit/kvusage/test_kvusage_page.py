"""How full each rank's cache is, as engines of several versions write it."""

import pytest

from aibrix_extproc.kvusage.page import read_usage

PAGE = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 6.1035e-05
vllm:num_requests_running{engine="0",model_name="m"} 3.0
"""


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (PAGE, {0: 0.25, 1: 6.1035e-05}),
        (PAGE.replace("kv_cache", "gpu_cache"), {0: 0.25, 1: 6.1035e-05}),
        ('vllm:gpu_cache_usage_perc{model_name="m"} 1.0\n', {0: 1.0}),
        ("vllm:gpu_cache_usage_perc 0\n", {0: 0.0}),
        ('vllm:kv_cache_usage_perc{model_name="a,engine=\\"7\\"",engine="2"} 0.5\n', {2: 0.5}),
        ('vllm:kv_cache_usage_perc{engine="0"} 0.5 1700000000000\n', {0: 0.5}),
        ('vllm:kv_cache_usage_perc{engine="0"} NaN\n', {}),
        ('vllm:kv_cache_usage_perc{engine="0"} 25\n', {}),
        ('vllm:kv_cache_usage_perc{engine="0"} -0.5\n', {}),
        ('vllm:kv_cache_usage_perc{engine="0"} 1e\n', {}),
        ('vllm:cpu_cache_usage_perc{engine="0"} 0.5\n', {}),
        ("sglang:token_usage 0.5\n", {}),
        ("", {}),
    ],
)
def test_each_rank_has_its_share(page: str, found: dict[int, float]) -> None:
    assert read_usage(page.encode()) == found
