"""What `make load` demands of a run."""

import pytest

from aibrix_extproc import cli
from benchmarks.load import SIZES, command, line, misses

RUN = {
    "errors": 0,
    "answered_per_s": 149.4,
    "offered_per_s": 150.3,
    "steady": True,
    "ttft_s": {"p50": 0.02, "p99": 0.05},
    "lateness_s": {"p99": 0.001},
    "generator_cpu_share": 0.15,
    "machine_cpu_share": 0.6,
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"steady": None}, []),
        ({"errors": 1}, ["1 failed"]),
        ({"answered_per_s": 148.7}, ["answered less than 99%"]),
        ({"steady": False}, ["TTFT grew throughout"]),
    ],
)
def test_a_run_holds_where_all_was_answered_as_fast_as_it_was_asked(
    change: dict[str, object], told: list[str]
) -> None:
    run = RUN | change
    assert misses(run) == told
    shown = line(SIZES[0], {"runs": [run], "test": {"null_run": {"requests_per_s": 900}}})
    assert shown.endswith(f"DOES NOT HOLD ({told[0]})" if told else ", holds")


def test_its_commands_are_those_of_the_load_test() -> None:
    for size in SIZES:
        args = cli._parser().parse_args(command(size, 150.0, 40.0, "folder"))  # type: ignore[arg-type]
        assert args.sessions == 6000
        assert args.num_blocks * args.block_size * args.pods > 150 * size.prefix
