"""Recordings of a real vLLM, played: the figures are those of the recording itself."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.settings import Settings
from aibrix_extproc.watch import text
from aibrix_extproc.watch.playback import Playback
from aibrix_extproc.watch.recording import BadRecording, answer_line, live_line
from aibrix_extproc.watch.rows import Row, Sort, View, troubles
from tests.kv_publisher import payload_of as payload
from tests.kv_publisher import removed, stored
from tests.recordings import payload_of, recorded
from tests.support import data_path

SCENARIOS = ("0.32-map-u64", "0.32-map-bytes32", "0.10.2-array-emulated", "0.32-truth")
Write = Callable[..., Path]


def play(*paths: Path, **options: Any) -> View:
    station = Playback(paths, Settings(), **options)
    station.start()
    while not station.settled():
        station.view()
    return station.final()


def only(view: View) -> Row:
    assert len(view.rows) == 1
    return view.rows[0]


def announced(name: str) -> dict[str, int]:
    """The sums of a recording, read by another decoder than that of the index."""
    sums = {"stored": 0, "removed": 0, "cleared": 0}
    for frame in recorded(f"{name}/frames"):
        for event in msgpack.unpackb(payload_of(frame), strict_map_key=False)[1]:
            kind, hashes = (
                (event["type"], event.get("block_hashes", []))
                if isinstance(event, dict)
                else (event[0], event[1] if len(event) > 1 else [])
            )
            sums["stored"] += len(hashes) if kind == "BlockStored" else 0
            sums["removed"] += len(hashes) if kind == "BlockRemoved" else 0
            sums["cleared"] += kind == "AllBlocksCleared"
    return sums


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_recording_of_vllm_shows_its_own_sums(name: str) -> None:
    row = only(play(data_path(f"vllm/{name}")))
    frames = recorded(f"{name}/frames")
    assert {"stored": row.stored, "removed": row.removed, "cleared": row.cleared} == announced(name)
    assert (row.messages, row.first, row.sequence) == (len(frames), 0, len(frames) - 1)
    assert (row.state, row.missing, row.gaps, row.restarts) == (SourceState.EXACT, 0, 0, 0)
    assert row.block_sizes == (32,)
    assert row.media == ("GPU",)


def test_the_bytes_are_those_of_the_recorded_frames() -> None:
    row = only(play(data_path("vllm/0.32-map-u64/frames.jsonl.gz")))
    frames = [line["frames_hex"] for line in recorded("0.32-map-u64/frames")]
    assert row.bytes == sum(len(frame) // 2 for message in frames for frame in message)


def test_adapters_are_named_where_the_engine_names_them() -> None:
    assert only(play(data_path("vllm/0.32-truth"))).adapters == ("tiny-lora",)
    assert only(play(data_path("vllm/0.10.2-array-emulated"))).adapters == ("id 1",)


def test_replay_answers_alone_are_played_as_a_stream() -> None:
    view = play(data_path("vllm/0.32-map-u64/replay.jsonl.gz"))
    row = next(row for row in view.rows if row.name == "replay_from_0")
    live = only(play(data_path("vllm/0.32-map-u64/frames.jsonl.gz")))
    assert (row.messages, row.stored, row.removed, row.held) == (
        live.messages,
        live.stored,
        live.removed,
        live.held,
    )


def test_two_recordings_are_two_sources_that_hold_the_same_blocks() -> None:
    """One scenario with two kinds of hashes: the block keys are the same."""
    view = play(data_path("vllm/0.32-map-u64"), data_path("vllm/0.32-map-bytes32"))
    assert [row.name for row in view.rows] == ["0.32-map-u64 v0", "0.32-map-bytes32 v0"]
    assert view.holdings is not None
    widest = view.holdings.groups[0]
    assert set(widest.holders) == {"0.32-map-u64 v0", "0.32-map-bytes32 v0"}
    assert widest.depths == (0, widest.blocks - 1)
    assert view.holdings.pairs[0].share == 1.0


def test_each_engine_version_of_a_collection_is_a_source_and_its_burnt_number_is_missing() -> None:
    view = play(data_path("vllm/publisher_matrix.jsonl.gz"))
    assert len(view.rows) == 30
    assert {row.holes for row in view.rows} == {((6, 6),)}
    assert {row.sequence for row in view.rows} == {7}
    assert len(troubles(view)) == 30


def test_tokens_are_known_only_where_they_were_asked_for() -> None:
    quiet = play(data_path("vllm/0.32-truth")).holdings
    told = play(data_path("vllm/0.32-truth"), with_tokens=True).holdings
    assert quiet is not None
    assert told is not None
    assert all(group.tokens is None for group in quiet.groups)
    tokens = told.groups[0].tokens
    assert tokens is not None
    assert len(tokens) == 32


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes messages at the times 1000.0, 1000.1, …: (number, payload) of the live stream."""

    def written(name: str, *messages: tuple[int, bytes]) -> Path:
        path = tmp_path / name
        lines = [
            live_line(1000 + place / 10, "e", [b"t", number.to_bytes(8, "big"), said])
            for place, (number, said) in enumerate(messages)
        ]
        path.write_bytes(b"".join(lines))
        return path

    return written


def chain(number: int) -> tuple[int, bytes]:
    """Batch `number` stores block number + 1, after the one before."""
    return number, payload(stored([number + 1], parent=number or None))


def test_a_gap_that_nobody_refilled_empties_the_source_as_it_did_then(write: Write) -> None:
    row = only(play(write("a.jsonl", chain(0), chain(1), (3, payload(stored([9]))))))
    assert (row.holes, row.gaps, row.held) == (((2, 2),), 1, 1)
    assert row.emptied == {"gap": 1}
    assert row.state is SourceState.PARTIAL


def test_a_gap_that_was_refilled_is_refilled_again(write: Write) -> None:
    path = write("a.jsonl", chain(0), chain(1), chain(3))
    answers = [
        answer_line(1000.21 + n / 1000, "e", 1, [b"", b"t", n.to_bytes(8, "big"), chain(n)[1]])
        for n in (1, 2, 3)
    ]
    # The proof is the payload itself: it must be the one that was sent live.
    live = {json.loads(line)["seq"]: line for line in path.read_bytes().splitlines()}
    for place, number in ((0, 1), (2, 3)):
        sent = bytes.fromhex(json.loads(live[number])["frames_hex"][2])
        frames = [b"", b"t", number.to_bytes(8, "big"), sent]
        answers[place] = answer_line(1000.21 + number / 1000, "e", 1, frames)
    end = answer_line(1000.3, "e", 1, [b"", b"", b"\xff" * 8, b""])
    path.with_name("a.replay.jsonl").write_bytes(b"".join([*answers, end]))
    row = only(play(path))
    assert (row.missing, row.refilled, row.gaps) == (0, 1, 1)
    assert (row.held, row.state, row.emptied) == (4, SourceState.EXACT, {})
    assert row.replayed == 3


def test_a_restart_is_counted_and_the_old_holes_are_forgotten(write: Write) -> None:
    before = [chain(0), (4, payload(stored([50])))]
    row = only(play(write("a.jsonl", *before, (0, payload(stored([7]), removed([7]))))))
    assert (row.restarts, row.missing, row.held) == (1, 0, 0)
    assert row.first == 0


def test_damaged_lines_and_a_cut_off_end_are_skipped_with_a_word(write: Write) -> None:
    path = write("a.jsonl", chain(0), chain(1), chain(2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{nonsense\n" + lines[1] + lines[2][:40])
    view = play(path)
    assert only(view).messages == 2
    assert view.notes == ("a.jsonl: 1 damaged lines are skipped, its last line is cut off and "
                          "skipped",)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [("empty", ""), ("prose", "hello\nworld\n"), ("other", '{"a": 1}\n'), ("binary", "\x00\x01")],
)
def test_what_is_no_recording_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadRecording, match=name):
        Playback([path], Settings())


def test_a_folder_without_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecording, match=r"holds neither frames\.jsonl nor replay\.jsonl"):
        Playback([tmp_path], Settings())


def test_a_recording_is_played_at_the_speed_that_is_asked_for(write: Write) -> None:
    """At a ten-thousandth of its speed the second message is seventeen minutes away."""
    station = Playback([write("a.jsonl", chain(0), chain(1))], Settings(), speed=1e-4)
    station.start()
    assert only(station.view()).messages == 1
    assert not station.settled()
    assert not station.view().ended


@pytest.mark.parametrize("t", ["NaN", "Infinity", "-1", "1e300", "true", '"now"', "9" * 400])
def test_a_line_without_a_time_that_can_be_is_skipped(t: str, write: Write) -> None:
    path = write("a.jsonl", chain(0))
    line = path.read_bytes()
    path.write_bytes(line.replace(b"1000.0", t.encode()) + line)
    assert only(play(path)).messages == 1


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """Of a source, an adapter and a medium; the recording keeps them as they are."""
    event = {**stored([1]), "lora_name": "\x1b[2Jlora", "medium": "\x1b]0;x\x07"}
    path = tmp_path / "a.jsonl"
    path.write_bytes(live_line(1000.0, "\x1b[31mred", [b"", bytes(8), payload(event)]))
    view = play(path)
    said = "\n".join(text.summary(view, Sort.NAME)) + json.dumps(text.json_line(view, Sort.NAME))
    assert only(view).name == "?[31mred"
    assert only(view).adapters == ("?[2Jlora",)
    assert "\x1b" not in said
    assert "\\u001b" not in said


def test_random_bytes_in_a_recording_harm_nothing(tmp_path: Path) -> None:
    draw = random.Random(os.environ["AIBRIX_TEST_SEED"])
    path = tmp_path / "a.jsonl"
    lines = []
    for number in range(400):
        frames = [draw.randbytes(draw.choice((0, 3, 8))) for _ in range(draw.randrange(5))]
        sequence = draw.randrange(30).to_bytes(8, "big")
        frames = draw.choice((frames, [b"t", sequence, draw.randbytes(20)], [b"", *frames]))
        write_line = draw.choice((live_line, lambda t, e, f: answer_line(t, e, 3, f)))
        lines.append(write_line(1000.0 + number * draw.choice((0, 1, -1)), "e", frames))
    path.write_bytes(b"".join(lines))
    view = play(path)
    assert view.ended
    assert sum(only(view).undecodable.values()) > 0
