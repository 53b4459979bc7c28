"""Recordings as they are written: nothing lost, nothing altered, and bounded."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch.playback import Playback
from aibrix_extproc.watch.recorder import MIN_LIMIT_BYTES, Recorder
from aibrix_extproc.watch.recording import Reading, parse_record
from aibrix_extproc.watch.rows import Row, View
from tests.kv_publisher import KvPublisher, removed, stored
from tests.recordings import END_OF_REPLAY, lines_of, payload_of, sequence_of
from tests.support import eventually
from tests.unit.watch.watch_rig import becomes, connected, row_of, target, watching

FRAMES = [b"kv@10.0.0.1@m", (7).to_bytes(8, "big"), b"\x93payload\xff\x00"]


def play(path: Path) -> View:
    station = Playback([path], Settings())
    station.start()
    while not station.settled():
        station.view()
    return station.final()


def figures(row: Row) -> tuple[object, ...]:
    return (
        row.state, row.messages, row.replayed, row.bytes, row.first, row.sequence, row.holes,
        row.gaps, row.refilled, row.restarts, row.stored, row.removed, row.cleared, row.parked,
        row.held, row.undecodable, row.emptied, row.block_sizes, row.media,
    )  # fmt: skip


def test_a_recording_played_shows_what_the_engines_showed(tmp_path: Path) -> None:
    """Joined late, a batch lost on the way and refilled, a burnt number, garbage."""
    path = tmp_path / "a.jsonl"
    with KvPublisher() as one, KvPublisher() as other:
        one.publish(stored([1, 2]))
        one.publish(stored([3], parent=2))
        with watching(target("one", one), target("other", other), record=path) as station:
            connected(station)
            becomes(station, "one", lambda row: row.held == 3)
            one.publish(stored([4], parent=3), lost=True)
            one.publish(removed([4]), stored([5], parent=3))
            other.publish(stored([1, 2]))
            other.burn()
            other.publish(stored([9]))
            other.publish_raw([b"garbage"])
            becomes(station, "one", lambda row: row.held == 4 and row.missing == 0)
            becomes(station, "other", lambda row: row.messages == 3 and row.held == 1)
            live = {row.name: figures(row) for row in station.view().rows}
    played = {row.name: figures(row) for row in play(path).rows}
    assert played == live


def test_every_frame_is_recorded_as_it_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sent = [[b"t", n.to_bytes(8, "big"), os.urandom(50 + n)] for n in range(300)]
    with KvPublisher() as engine, watching(target("a", engine, replay=False), record=path) as seen:
        connected(seen)
        for frames in sent:
            engine.publish_raw(frames)
        becomes(seen, "a", lambda row: row.messages == len(sent))
    assert [list(parse_record(line).frames) for line in path.read_bytes().splitlines()] == sent


def test_what_reads_the_recordings_of_tests_reads_these(tmp_path: Path) -> None:
    """The helpers that the contract tests use, over an index of our own."""
    path = tmp_path / "frames.jsonl"
    with KvPublisher() as engine:
        engine.publish(stored([1]))
        with watching(target("a", engine), record=tmp_path) as station:
            connected(station)
            engine.publish(stored([2], parent=1))
            becomes(station, "a", lambda row: row.held == 2 and row.messages == 1)
    (live,) = lines_of(path)
    assert live["seq"] == 1
    assert sequence_of(live) == "0000000000000001"
    *answers, end = lines_of(tmp_path / "replay.jsonl")[: engine.next_number + 1]
    assert sequence_of(end) == END_OF_REPLAY or sequence_of(answers[0]) == "0" * 16
    index = PrefixIndex()
    source = index.add_source("m")
    applied = [index.apply(source, payload_of(line)) for line in (answers[0], live)]
    assert [one.stored for one in applied] == [1, 1]


def test_only_its_owner_may_read_a_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.jsonl")
    recorder.answer(1.0, "e", 0, [b"", b"t", (1).to_bytes(8, "big"), b"x"])
    recorder.close()
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == 2
    assert modes == {0o600}


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("precious")
    with pytest.raises(SettingsError, match="exists already"):
        Recorder(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "precious"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Recorder(tmp_path / "nowhere" / "a.jsonl")


def test_a_bound_keeps_the_latest_messages_and_is_never_passed(tmp_path: Path) -> None:
    limit_bytes = MIN_LIMIT_BYTES
    recorder = Recorder(tmp_path / "a.jsonl", limit_bytes)
    most = 0
    for number in range(3000):
        frames = [b"t", number.to_bytes(8, "big"), b"x" * 50]
        recorder.live(float(number), "e", frames)
        recorder.answer(float(number), "e", 0, [b"", *frames])
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    recorder.close()
    assert recorder.lines == 6000
    assert limit_bytes / 4 < most <= limit_bytes
    kept = [
        record.t
        for path in (tmp_path / "a.jsonl.1", tmp_path / "a.jsonl")
        for record in Reading(path)
    ]
    assert kept == [float(n) for n in range(3000 - len(kept), 3000)]
    row = next(row for row in play(tmp_path / "a.jsonl").rows if row.name == "e")
    assert (row.messages, row.first, row.missing) == (len(kept), int(kept[0]), 0)


def test_a_full_disk_ends_the_recording_and_not_the_watching() -> None:
    recorder = Recorder(Path("/dev/full"))
    recorder.live(1.0, "e", FRAMES)
    recorder.live(2.0, "e", FRAMES)
    assert recorder.stopped is not None
    assert recorder.stopped.startswith("the recording ended after 0 messages: /dev/full: No space")
    recorder.close()


def test_the_line_that_does_not_fit_any_more_is_cut_off_again(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: it cuts a line in its middle too."""
    script = """
        import resource, sys
        from pathlib import Path
        from aibrix_extproc.watch.recorder import Recorder
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        recorder = Recorder(Path(sys.argv[1]))
        for number in range(100):
            recorder.live(float(number), "e", [b"t", number.to_bytes(8, "big"), b"x" * 100])
        print(recorder.stopped)
    """
    path = tmp_path / "a.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = path.read_bytes().splitlines(keepends=True)
    assert f"ended after {len(lines)} messages" in ended.stdout
    assert "File too large" in ended.stdout
    assert [parse_record(line).t for line in lines] == [float(n) for n in range(len(lines))]
    assert len(lines) > 10


def test_a_kill_costs_at_most_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with KvPublisher() as engine:
        command = [sys.executable, "-m", "aibrix_extproc.cli", "watch", engine.endpoint]
        process = subprocess.Popen(
            [*command, "--record", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def arrives() -> bool:
            engine.publish(stored([engine.next_number + 1]))
            return path.exists() and path.read_bytes().count(b"\n") >= 20

        try:
            eventually(arrives, timeout_s=30)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    lines = path.read_bytes().splitlines(keepends=True)
    numbers = [json.loads(line)["seq"] for line in lines if line.endswith(b"\n")]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(lines) - len(numbers) in (0, 1)
    assert play(path).rows[0].messages == len(numbers)


def test_messages_that_are_dropped_with_their_connection_are_recorded_too(tmp_path: Path) -> None:
    """An engine that is restarted at once: what it sent last may be given to nobody."""
    path = tmp_path / "a.jsonl"
    with KvPublisher() as engine, watching(target("a", engine), record=path) as station:
        connected(station)
        for block in range(1, 40):
            engine.publish(stored([block]))
        becomes(station, "a", lambda row: row.messages is not None and row.messages > 0)
        engine.restart()
        eventually(lambda: row_of(station, "a").connected)
        engine.publish(stored([99]))
        row = becomes(station, "a", lambda row: row.restarts == 1)
        assert len(lines_of(path)) == row.messages
