"""Traces as they are read, and workloads as they are made."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads.generated import WORKLOADS, Shape, agent, multi_turn
from aibrix_extproc.workloads.mooncake import mooncake
from aibrix_extproc.workloads.pieces import total

ROW = {"timestamp": 6000, "input_length": 700, "output_length": 5, "hash_ids": [3, 9]}
SHAPE = Shape(sessions=50, rate=10.0, groups=4, turns=3)


def written(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_id_is_512_tokens_and_the_last_one_is_cut(tmp_path: Path) -> None:
    (session,) = mooncake(written(tmp_path, ROW), speed=3.0)
    assert session.start_s == 2.0
    (turn,) = session.turns
    assert [(piece.name, piece.tokens) for piece in turn.prompt] == [
        ("mooncake 3", 512),
        ("mooncake 9", 188),
    ]
    assert turn.answer.tokens == 5


def test_a_length_beyond_the_ids_is_cut_to_them(tmp_path: Path) -> None:
    (session,) = mooncake(written(tmp_path, ROW | {"input_length": 5000}))
    assert session.turns[0].prompt_tokens == 1024


def test_answers_of_different_lines_share_nothing(tmp_path: Path) -> None:
    sessions = mooncake(written(tmp_path, ROW, ROW))
    assert len({session.turns[0].answer.name for session in sessions}) == 2


def test_a_limit_takes_the_first_lines(tmp_path: Path) -> None:
    assert len(mooncake(written(tmp_path, ROW, ROW, ROW), limit=2)) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"timestamp": 1}, "line 2"),
        (ROW | {"hash_ids": []}, "hash_ids"),
        (ROW | {"output_length": 0}, "a length of 0 tokens"),
        (ROW | {"input_length": "x"}, "line 2"),
        (["no", "row"], "line 2"),
        (ROW | {"timestamp": "soon"}, "line 2"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        mooncake(written(tmp_path, ROW, row))


def test_a_file_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        mooncake(tmp_path / "none")
    with pytest.raises(SettingsError, match="holds no request"):
        mooncake(written(tmp_path))


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_its_seed(name: str) -> None:
    make = WORKLOADS[name]
    assert make(SHAPE, 1) == make(SHAPE, 1)
    assert make(SHAPE, 1) != make(SHAPE, 2)
    starts = [session.start_s for session in make(SHAPE, 1)]
    assert starts == sorted(starts)
    assert 50 / 10 * 0.5 < starts[-1] < 50 / 10 * 2


def test_unique_shares_nothing_and_shared_prefix_the_prefixes_of_its_groups() -> None:
    unique, shared = (
        [piece.name for session in WORKLOADS[name](SHAPE, 1) for piece in session.turns[0].prompt]
        for name in ("unique", "shared-prefix")
    )
    assert len(set(unique)) == len(unique) == 100
    assert len(set(shared)) == 50 + SHAPE.groups


def test_a_later_turn_begins_with_all_that_was_said() -> None:
    for session in multi_turn(SHAPE, 1):
        assert len(session.turns) == SHAPE.turns
        for before, after in zip(session.turns, session.turns[1:], strict=False):
            assert after.prompt[: len(before.prompt) + 1] == (*before.prompt, before.answer)
            assert total(after.prompt[len(before.prompt) + 1 :]) == SHAPE.turn_tokens


def test_agents_differ_in_how_many_turns_they_take() -> None:
    assert len({len(session.turns) for session in agent(SHAPE, 1)}) > 2


@pytest.mark.parametrize("name", WORKLOADS)
def test_sessions_have_ids_that_are_stable_and_their_own(name: str) -> None:
    ids = [session.id for session in WORKLOADS[name](SHAPE, 7)]
    assert len(set(ids)) == len(ids)
    assert ids[3] == f"{name}-7-3"


def test_the_lines_of_a_trace_are_sessions_of_their_own(tmp_path: Path) -> None:
    sessions = mooncake(written(tmp_path, ROW, ROW))
    assert [session.id for session in sessions] == ["mooncake-0", "mooncake-1"]


def test_even_groups_have_as_many_requests_each_in_an_order_from_the_seed() -> None:
    shape = replace(SHAPE, even=True, sessions=20)
    asked = [
        [session.turns[0].prompt[0].name for session in WORKLOADS["shared-prefix"](shape, seed)]
        for seed in (1, 2)
    ]
    for names in asked:
        assert set(Counter(names).values()) == {5}
    assert asked[0] != asked[1]
