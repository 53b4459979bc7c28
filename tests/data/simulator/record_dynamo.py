"""Run Dynamo's own offline replay on a Mooncake trace, and write its figures as JSON.

    python3 -m venv .venv-dynamo
    .venv-dynamo/bin/pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    .venv-dynamo/bin/pip install typing_extensions pydantic
    .venv-dynamo/bin/python record_dynamo.py TRACE SPEED WORKERS BLOCKS [round_robin|kv_router]

No test runs this: Dynamo is no dependency. Its figures are in the files beside it.
"""

import json
import sys
from typing import Any

from dynamo.replay import run_trace_replay  # type: ignore[import-not-found]


def main() -> None:
    """Print the summary and a row for each request."""
    trace, speed, workers, blocks = sys.argv[1:5]
    report = run_trace_replay(
        trace,
        extra_engine_args={"engine": {"block_size": 64, "num_gpu_blocks": int(blocks)}},
        num_workers=int(workers),
        router_mode=sys.argv[5] if len(sys.argv) > 5 else "round_robin",
        arrival_speedup_ratio=float(speed),
        trace_block_size=512,
        capture_per_request=True,
    )
    rows = sorted(_row(request) for request in report.per_request)
    page = {**report.summary, "requests": rows}
    json.dump(page, sys.stdout, default=str)


def _row(request: dict[str, Any]) -> list[float]:
    return [
        request["arrival_time_ms"],
        request["routing_history"][0]["logical_worker_id"],
        request["input_length"],
        request["output_length"],
        request["admission_history"][0]["reused_input_tokens"],
        round(request["ttft_ms"], 3),
        round(request["e2e_latency_ms"], 3),
    ]


if __name__ == "__main__":
    main()
