"""A lasting trouble is told once; lines have two shapes."""

import json
import logging

import pytest

from aibrix_extproc import logs
from aibrix_extproc.settings import LogFormat


def test_a_state_is_told_when_it_changes_and_not_while_it_stays(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    told = logs.StateLog(logging.getLogger("test"))
    assert not told.changed("tokenizer", "ok")
    assert told.changed("tokenizer", "down", "refused")
    assert not told.changed("tokenizer", "down", "refused")
    assert told.changed("tokenizer", "ok")
    assert not told.changed("tokenizer", "ok")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "refused" in caplog.text


def test_things_are_told_apart_and_can_be_forgotten() -> None:
    told = logs.StateLog(logging.getLogger("test"))
    assert told.changed("a", "down")
    assert told.changed("b", "down")
    told.forget("a")
    assert told.changed("a", "down")


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_a_line_can_be_read_in_both_shapes(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.configure("INFO", log_format)
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("x").exception("it %s", "broke")
    finally:
        root.handlers[:], root.level = before, level
    text = capsys.readouterr().err
    if log_format is LogFormat.JSON:
        line = json.loads(text)
        assert (line["message"], line["level"], line["logger"]) == ("it broke", "ERROR", "x")
        assert "ValueError: why" in line["exception"]
    else:
        assert "ERROR   x: it broke" in text


class _Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_happens_again_and_again_is_told_when_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = _Time()
    spells = logs.Spells(logging.getLogger("test"), quiet_s=10.0, clock=clock)
    assert spells.seen("events are skipped", "why")
    for _ in range(5):
        clock.now += 9.0
        assert not spells.seen("events are skipped", "why", times=2)
    assert spells.seen("another thing")
    clock.now += 10.0
    assert spells.seen("events are skipped", "why")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "events are skipped (why)",
        "another thing",
        "events are skipped (why); 11 times before it was quiet",
    ]


def test_spells_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MAX_SPELLS", 2)
    spells = logs.Spells(logging.getLogger("test"))
    for thing in ("a", "b", "a", "c"):
        spells.seen(thing)
    assert not spells.seen("a")
    assert spells.seen("b")
