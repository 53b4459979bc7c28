"""Snapshots on disk: the old one or the new one, never half of one."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.snapshot import files
from aibrix_extproc.snapshot.format import Refusal, SnapshotRefused
from tests.unit.snapshot.test_snapshot_format import snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.snapshot"


def test_what_is_written_is_there_and_nothing_beside_it(path: Path) -> None:
    assert files.write(path, [b"ab", b"", b"cd"]) == 4
    assert path.read_bytes() == b"abcd"
    assert os.listdir(path.parent) == [path.name]


def test_what_breaks_off_leaves_the_file_as_it_was(path: Path) -> None:
    path.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        yield b"new"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        files.write(path, parts())
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_only_its_owner_may_read_it(path: Path) -> None:
    files.write(path, [b"a"])
    assert path.stat().st_mode & 0o077 == 0


def test_leftovers_of_a_killed_process_are_removed_and_no_others(path: Path) -> None:
    old, young, other = (
        path.parent / name
        for name in (f".{path.name}.x1.part", f".{path.name}.x2.part", ".other.x.part")
    )
    for file in (old, young, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (1000, 1000))
    files.remove_leftovers(path, time.time())
    assert sorted(os.listdir(path.parent)) == sorted([young.name, other.name])


def test_a_file_that_is_replaced_is_still_read(path: Path) -> None:
    path.write_bytes(snapshot(b"one", b"two"))
    opened = files.open_snapshot(path)
    assert opened is not None
    files.write(path, [snapshot(b"three")])
    records = opened.contents.records
    assert [opened.export(record) for record in records] == [b"one", b"two"]
    opened.close()
    with pytest.raises(ValueError):
        opened.export(records[0])


def test_a_file_that_is_not_there_is_no_trouble(path: Path) -> None:
    assert files.open_snapshot(path) is None


def test_a_file_that_shrinks_after_it_was_checked_gives_no_half_export(path: Path) -> None:
    path.write_bytes(snapshot(b"one" * 100))
    opened = files.open_snapshot(path)
    assert opened is not None
    os.truncate(path, 150)
    with pytest.raises(OSError, match="of 300 bytes"):
        opened.export(opened.contents.records[0])
    opened.close()


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(SnapshotRefused, match="cannot be read") as refused:
        files.open_snapshot(path)
    assert refused.value.reason is Refusal.UNREADABLE


@pytest.mark.parametrize(
    ("name", "why"), [("no/index.snapshot", "there is no folder"), (".", "is no file")]
)
def test_a_path_that_cannot_be_written_stops_the_start(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"AIBRIX_KV_SNAPSHOT_PATH: .*{why}"):
        files.check_path(tmp_path / name, "AIBRIX_KV_SNAPSHOT_PATH")
