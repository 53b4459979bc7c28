"""The command `simulate`, from its options to the table and the file."""

import json
from pathlib import Path

import pytest

from aibrix_extproc.cli import main

SMALL = ["--sessions", "12", "--prefix-tokens", "200", "--turn-tokens", "50"]
SMALL += ["--output-tokens", "8", "--groups", "2", "--pods", "2"]
TRACE = Path(__file__).parents[2] / "data" / "simulator" / "mooncake_conversation_150.jsonl"


def test_strategies_are_compared_in_a_table_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    strategies = ["--strategy", "round-robin", "--strategy", "prefix-cache"]
    command = ["simulate", "shared-prefix", *SMALL, *strategies, "--bound", "--json", str(path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "round-robin" in shown
    assert "hit ratio (engines)" in shown
    assert "of one infinite cache" in shown
    assert "preemptions" in shown
    page = json.loads(path.read_text())
    assert page["options"]["pods"] == 2
    first, second = page["runs"]
    assert (first["strategy"], first["requests"]) == ("round-robin", 12)
    assert second["hit_ratio"] <= second["bound_hit_ratio"]


def test_a_trace_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "mooncake", str(TRACE), "--limit", "8", "--speed", "3"]
    assert main([*command, "--strategy", "least-request", "--no-events"]) == 0
    assert "least-request" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["mooncake"], "mooncake needs a file"),
        (["mooncake", "no-such-file"], "no-such-file"),
        (["unique", "trace.jsonl"], "takes no file"),
        (["unique", "--strategy", "best"], "round-robin"),
        (["unique", *SMALL, "--blocks", "2", "--strategy", "random"], "--blocks"),
    ],
)
def test_what_cannot_be_is_told_with_exit_code_2(
    command: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *command]) == 2
    assert told in capsys.readouterr().err


def test_slow_pods_an_slo_and_slices_of_time_go_into_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    command = ["simulate", "unique", *SMALL, "--strategy", "round-robin", "--json", str(path)]
    command += ["--slo", "60000:60000", "--over-time", "0.5", "--slow-pods", "0.5:40"]
    command += ["--gateways", "2", "--front", "session-hash", "--around", "0.3"]
    assert main([*command, "--replay-rate", "1000", "--prefill-ns-per-pair", "1"]) == 0
    assert "met the SLO" in capsys.readouterr().out
    (found,) = json.loads(path.read_text())["runs"]
    assert found["goodput"] == 1.0
    assert sum(piece["requests"] for piece in found["over_time"]) == found["requests"]
    assert found["busy_share_max"] > 1.3 * found["busy_share_mean"]


@pytest.mark.parametrize(
    "option",
    [
        ["--pods", "0"],
        ["--speed", "0"],
        ["--decode-ms", "-1"],
        ["--rate", "inf"],
        ["--around", "2"],
        ["--slow-pods", "2:1"],
        ["--slo", "1"],
        ["--slo", "1:x"],
        ["--slo", "1:0"],
    ],
)
def test_a_number_that_cannot_be_is_refused(option: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "unique", *option])
    assert ended.value.code == 2
