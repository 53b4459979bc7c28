"""Requests as a file gives them."""

import json
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads.replay import replay

CHAT = {"time": 1.5, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
COMPLETION = {"time": 0, "prompt": "Once", "max_tokens": 3, "session": "tale 7"}


def written(folder: Path, *rows: object) -> Path:
    path = folder / "requests.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_lines_become_sessions_in_the_order_of_their_times(tmp_path: Path) -> None:
    first, second = replay(written(tmp_path, CHAT, "", COMPLETION))
    assert (first.start_s, first.id) == (0.0, "tale 7")
    assert (second.start_s, second.id) == (1.5, "replay-1")
    assert first.turns[0].recorded == {"prompt": "Once"}
    assert second.turns[0].recorded == {"messages": CHAT["messages"]}
    assert second.turns[0].answer.tokens == 8


def test_times_may_be_those_of_a_clock_the_earliest_is_sent_at_once(tmp_path: Path) -> None:
    rows = [CHAT | {"time": 1.7e9 + after} for after in (6.0, 0.0, 3.0)]
    sessions = replay(written(tmp_path, *rows), speed=3.0)
    assert [session.start_s for session in sessions] == [0.0, 1.0, 2.0]
    assert [session.id for session in sessions] == ["replay-2", "replay-3", "replay-1"]


def test_a_limit_takes_the_first_lines(tmp_path: Path) -> None:
    (only,) = replay(written(tmp_path, CHAT, COMPLETION), limit=1)
    assert only.id == "replay-1"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 2: no JSON "),
        ([1], "line 2: no JSON object"),
        (CHAT | {"time": -1}, "`time` is -1"),
        (CHAT | {"time": True}, "`time` is True"),
        ({"messages": [{}], "max_tokens": 1}, "`time` is None"),
        (CHAT | {"max_tokens": 0}, "`max_tokens` is 0"),
        (CHAT | {"prompt": "x"}, "exactly one of"),
        ({"time": 0, "max_tokens": 1}, "exactly one of"),
        (CHAT | {"messages": "hello"}, "no list of messages"),
        (CHAT | {"messages": []}, "`messages` is empty"),
        (COMPLETION | {"prompt": [1, "a"]}, "neither a text nor token ids"),
        (COMPLETION | {"session": ""}, "`session` is ''"),
        (COMPLETION | {"session": "a\nb"}, "printable ASCII"),
        (CHAT | {"temperature": 1}, "unknown field temperature; known are"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(SettingsError, match="line 2") as caught:
        replay(written(tmp_path, CHAT, row))
    assert told in str(caught.value)


def test_a_file_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        replay(tmp_path / "none")
    with pytest.raises(SettingsError, match="holds no request"):
        replay(written(tmp_path))
