"""The options that choose a workload."""

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.workloads import options
from aibrix_extproc.workloads.generated import Shape

DEFAULTS = Shape(sessions=6, groups=2, prefix_tokens=30, turn_tokens=10, output_tokens=4)
ROW = {"timestamp": 6000, "input_length": 700, "output_length": 5, "hash_ids": [3, 9]}


def given(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser, DEFAULTS)
    parser.set_defaults(command="simulate")
    return parser.parse_args([str(word) for word in words])


def test_what_is_not_given_is_the_commands_default() -> None:
    sessions = options.sessions_of(given("shared-prefix", "--turn-tokens", 11), DEFAULTS)
    assert len(sessions) == 6
    assert [piece.tokens for piece in sessions[0].turns[0].prompt] == [30, 11]


def test_the_preset_is_150_groups_of_five_prompts() -> None:
    args = given("shared-prefix", "--preset", "b2b-saas")
    sessions = options.sessions_of(args, DEFAULTS)
    groups = Counter(session.turns[0].prompt[0] for session in sessions)
    assert len(groups) == 150
    assert set(groups.values()) == {5}
    turn = sessions[0].turns[0]
    assert [piece.tokens for piece in turn.prompt] == [6000, 1200]
    assert turn.answer.tokens == 1000


def test_an_option_beside_a_preset_goes_before_it() -> None:
    args = given("shared-prefix", "--preset", "b2b-saas", "--output-tokens", 8)
    assert options.shape_of(args, DEFAULTS).output_tokens == 8
    assert options.settled(args, DEFAULTS)["prefix_tokens"] == 6000


def test_jitter_is_in_the_traces_own_seconds(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(json.dumps(ROW) * 1 + "\n")
    (session,) = options.sessions_of(
        given("mooncake", trace, "--speed", 3, "--jitter", 3), DEFAULTS
    )
    assert 2.0 < session.start_s <= 3.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mooncake",), "simulate mooncake PATH"),
        (("unique", "trace.jsonl"), "takes no file"),
        (("unique", "--preset", "b2b-saas"), "is one of shared-prefix"),
    ],
)
def test_options_that_do_not_fit_are_told(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        options.sessions_of(given(*words), DEFAULTS)
