"""What the command line means, what it prints without a terminal, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aibrix_extproc.cli import main
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch import options
from aibrix_extproc.watch.rows import Sort
from aibrix_extproc.watch.sources import parse_target, parse_targets, read_targets
from tests.kv_publisher import KvPublisher, stored
from tests.recordings import lines_of
from tests.support import data_path, free_port

TRUTH = str(data_path("vllm/0.32-truth"))


def test_a_source_is_written_with_or_without_name_and_replay_port() -> None:
    target = parse_target("tcp://10.0.0.1:5557")
    assert (target.name, target.rank.event_endpoint) == ("10.0.0.1:5557", "tcp://10.0.0.1:5557")
    assert target.rank.replay_endpoint is None
    target = parse_target("vllm-0=tcp://[2001:db8::1]:5557,tcp://[2001:db8::1]:5657")
    assert target.name == "vllm-0"
    assert target.rank.replay_endpoint == "tcp://[2001:db8::1]:5657"
    assert parse_target("ipc:///run/kv").rank.event_endpoint == "ipc:///run/kv"


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1:5557", "http://10.0.0.1:5557", "tcp://10.0.0.1", "tcp://*:5557", "tcp://:5557",
        "tcp://a:99999", "tcp://a:1,tcp://a:2,tcp://a:3", "tcp://a:1,tcp://a:1", "", "tcp://a:1/x",
        "tcp://a:1,", "ipc://",
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(SettingsError, match=r"write \[NAME=\]tcp://|another one"):
        parse_target(text)


def test_a_source_is_named_once() -> None:
    with pytest.raises(SettingsError, match="tcp://a:1 is named twice"):
        parse_targets(["tcp://a:1", "x=tcp://a:1"])


def test_an_endpoints_file_gives_every_rank_whose_events_are_on(tmp_path: Path) -> None:
    path = tmp_path / "pods.yaml"
    path.write_text(
        "pods:\n"
        "- {name: a, model: m, address: '10.0.0.1:8000', kv_events: true}\n"
        "- {name: b, namespace: x, model: m, address: '10.0.0.2:8000', ranks: 2,\n"
        "   kv_events: {port: 6000, replay_port: 7000}}\n"
        "- {name: c, model: m, address: '10.0.0.3:8000'}\n"
    )
    found = [(t.name, t.model, t.rank.event_endpoint) for t in read_targets(path, Settings())]
    assert found == [
        ("a", "m", "tcp://10.0.0.1:5557"),
        ("x/b#0", "m", "tcp://10.0.0.2:6000"),
        ("x/b#1", "m", "tcp://10.0.0.2:6001"),
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "SOURCE"),
        (["tcp://a:1", "--server", "http://localhost:1"], "SOURCE"),
        (["--server", "localhost:8081"], "--server"),
        (["--replay", TRUTH, "--record", "x.jsonl"], "--record"),
        (["tcp://a:1", "--limit-bytes", "1GiB"], "--limit-bytes"),
        (["tcp://a:1", "--record", "/nowhere/x", "--limit-bytes", "10"], "--limit-bytes"),
        (["tcp://a:1", "--speed", "2"], "--speed"),
        (["tcp://a:1", "--holdings"], "--holdings"),
        (["tcp://a:1", "--record", "/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
        (["--endpoints-file", "/nowhere/pods.yaml"], "/nowhere/pods.yaml"),
        (["nonsense"], "nonsense"),
    ],
)
def test_options_that_cannot_be_used_end_it_with_2_and_are_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *arguments]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--interval", "0"],
        ["--seconds", "x"],
        ["--speed", "-1"],
        ["--speed", "x"],
        ["--limit-bytes", "much"],
    ],
)
def test_numbers_that_are_none_end_it_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["watch", "tcp://a:1", *arguments])
    assert "invalid" not in capsys.readouterr().err, "it says what it should be instead"


def test_the_orders_of_the_option_are_those_that_there_are() -> None:
    assert tuple(Sort) == options.SORTS


def test_a_recording_that_is_none_ends_it_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--replay", "/nowhere"]) == 1
    assert "/nowhere: there is no such file or folder" in capsys.readouterr().err


def test_a_server_that_is_none_ends_it_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--server", f"http://127.0.0.1:{free_port()}", "--once"]) == 1
    assert "/debug/sources cannot be read" in capsys.readouterr().err


def test_a_recording_is_summed_up_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--replay", TRUTH]) == 0
    said = capsys.readouterr().out
    assert "1 source: 1 EXACT" in said
    assert "733 messages" in said
    assert "1,718 blocks stored, 1,408 removed, 5 times cleared, 0 parked, 62 held" in said
    assert "tokens " not in said.replace("32 tokens a block", "")
    assert said.endswith("no trouble\n")


def test_missing_batches_end_it_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--replay", str(data_path("vllm/publisher_matrix.jsonl.gz"))]) == 1
    assert "trouble: 0.9.1.post2 live: 1 missing (6)" in capsys.readouterr().out


def test_json_has_every_figure_and_the_last_line_is_the_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["watch", "--replay", TRUTH, "--json"]) == 0
    (said,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert said["summary"] is True
    assert said["troubles"] == []
    (source,) = said["sources"]
    wanted = {"stored": 1718, "removed": 1408, "cleared": 5, "messages": 733, "sequence": 732}
    assert {name: source[name] for name in wanted} == wanted
    assert "tokens" not in json.dumps(said["holdings"])


def test_once_ends_after_the_first_sync_and_records_what_it_heard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    with KvPublisher() as engine:
        engine.publish(stored([1, 2]))
        source = f"{engine.endpoint},{engine.replay_endpoint}"
        assert main(["watch", source, "--once", "--record", str(path)]) == 0
    assert "2 blocks stored" in capsys.readouterr().out
    assert len(lines_of(tmp_path / "a.replay.jsonl")) == 2


def test_lines_are_printed_while_it_runs_and_it_ends_by_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One engine is there and one is not: exit code 1, and the one is named."""
    with KvPublisher() as engine:
        both = [engine.endpoint, f"gone=tcp://127.0.0.1:{free_port()}"]
        assert main(["watch", *both, "--seconds", "0.5", "--interval", "0.1", "--json"]) == 1
        *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert len(lines) >= 2
        assert last["troubles"] == ["gone: not reached"]
        main(["watch", engine.endpoint, "--seconds", "0.2", "--interval", "0.1"])
    assert " batches/s | +0 -0 blocks/s | " in capsys.readouterr().out.splitlines()[0]


def test_who_reads_the_lines_may_leave() -> None:
    command = [sys.executable, "-m", "aibrix_extproc.cli", "watch", "--replay", TRUTH]
    process = subprocess.Popen(
        [*command, "--speed", "100", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
