"""`/metrics` of a fake engine: vLLM's names and labels, in Prometheus' text format."""

from collections.abc import Iterable, Sequence

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.events import KV_USAGE_NAME_SINCE
from aibrix_extproc.fakes.rank import RankEngine
from aibrix_extproc.fakes.scheduler import Finish

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(config: EngineConfig, ranks: Sequence[RankEngine]) -> str:
    """All series, one per rank (label `engine`). Prefix cache counters count tokens."""
    usage = "kv_cache_usage_perc"
    if config.version < KV_USAGE_NAME_SINCE:
        usage = "gpu_cache_usage_perc"
    lines: list[str] = []
    gauges: dict[str, list[float]] = {
        "num_requests_running": [rank.scheduler.running for rank in ranks],
        "num_requests_waiting": [rank.scheduler.waiting for rank in ranks],
        usage: [rank.blocks.usage for rank in ranks],
    }
    counts = [rank.scheduler.counts for rank in ranks]
    counters: dict[str, list[float]] = {
        "prefix_cache_queries_total": [one.prefix_queries for one in counts],
        "prefix_cache_hits_total": [one.prefix_hits for one in counts],
        "prompt_tokens_total": [one.prompt_tokens for one in counts],
        "generation_tokens_total": [one.generated_tokens for one in counts],
        "num_preemptions_total": [one.preemptions for one in counts],
    }
    for kind, family in (("gauge", gauges), ("counter", counters)):
        for name, values in family.items():
            lines += _family(config, name, kind, [("", value) for value in values])
    finished = [
        (f',finished_reason="{reason}"', one.finished[reason])
        for one in counts
        for reason in Finish
    ]
    lines += _family(config, "request_success_total", "counter", finished, len(Finish))
    cache = f',block_size="{config.block_size}",num_gpu_blocks="{config.num_blocks}"'
    cache += ',enable_prefix_caching="True"'
    lines += _family(config, "cache_config_info", "gauge", [(cache, 1) for _ in ranks])
    return "\n".join(lines) + "\n"


def _family(
    config: EngineConfig,
    name: str,
    kind: str,
    samples: Iterable[tuple[str, float]],
    per_rank: int = 1,
) -> list[str]:
    lines = [f"# TYPE vllm:{name} {kind}"]
    for index, (labels, value) in enumerate(samples):
        engine = f'engine="{index // per_rank}",model_name="{config.model}"'
        lines.append(f"vllm:{name}{{{engine}{labels}}} {float(value)}")
    return lines
