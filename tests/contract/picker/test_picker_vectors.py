"""The vectors as data: complete, readable, and listed in docs/contract.md."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.contract.picker import options
from tests.contract.picker.faults import FAULTS
from tests.contract.picker.matchers import MATCHERS
from tests.contract.picker.steps import STEPS
from tests.contract.picker.table import BEGIN, END, table
from tests.contract.picker.vectors import FOLDER, Level, Mode, Vector, VectorError, load

PAGE = Path(__file__).parents[3] / "docs" / "contract.md"
VECTORS = load()


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_a_vector_is_whole(vector: Vector) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", vector.id)
    assert vector.rule.endswith("."), "the rule is a sentence"
    assert {name for name, _ in vector.steps} <= {*STEPS, "health"}
    assert {name for name, _ in vector.expect} <= {*MATCHERS, "health"}
    assert vector.expect or vector.afterwards
    assert vector.modes


def test_every_level_and_mode_and_step_and_matcher_is_used() -> None:
    assert {vector.level for vector in VECTORS} == set(Level)
    assert {mode for vector in VECTORS for mode in vector.modes} == set(Mode)
    assert {name for v in VECTORS for name, _ in v.steps} == {*STEPS, "health"}
    assert {name for v in VECTORS for name, _ in v.expect} == {*MATCHERS, "health"}


def test_a_rule_of_the_protocol_names_the_proposal_and_a_choice_of_ours_does_not() -> None:
    for vector in VECTORS:
        assert (vector.level is Level.PROTOCOL) == vector.source.startswith("proposal 004: ")
        if vector.source.startswith("this server: "):
            assert vector.level is Level.AIBRIX, vector.id


def test_each_fault_breaks_vectors_that_exist() -> None:
    known = {vector.id: vector for vector in VECTORS}
    for fault in FAULTS:
        assert fault.breaks
        for name in fault.breaks:
            assert fault.mode in known[name].modes, f"{fault.name}: {name}"
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 12


def test_a_vector_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = (FOLDER / "health.yaml").read_text()
    (tmp_path / "health.yaml").write_text(text.replace("level: envoy", "level: mine"))
    with pytest.raises(VectorError, match=r"health\.yaml: health-empty-name: .*mine"):
        load(tmp_path)
    (tmp_path / "health.yaml").write_text(text.replace("health-readiness", "health-liveness"))
    with pytest.raises(VectorError, match="health-liveness: this id stands twice"):
        load(tmp_path)


def test_the_page_lists_every_vector() -> None:
    page = PAGE.read_text()
    listed = page[page.index(BEGIN) : page.index(END) + len(END)]
    hint = "run: python -m tests.contract.picker.table docs/contract.md"
    assert listed == table(VECTORS), hint


def test_the_page_names_every_option() -> None:
    found = set(re.findall(r"addoption\(\s*\"(--[a-z-]+)\"", Path(options.__file__).read_text()))
    assert "--target" in found
    assert found <= set(re.findall(r"`(--[a-z-]+)", PAGE.read_text()))


def configured(**given: Any) -> pytest.Config:
    values = {"target": "127.0.0.1:1", "target-model": "", "target-pods": "", "target-ca": ""}
    values |= {"target-timeout": 1.0, "target-profile": None, "target-mode": "both"}
    values |= {name.replace("_", "-"): value for name, value in given.items()}

    def getoption(name: str, default: Any = None) -> Any:
        return values.get(name.removeprefix("--"), default)

    return cast(pytest.Config, SimpleNamespace(getoption=getoption))


def test_a_target_that_cannot_be_used_is_told() -> None:
    for given, text in (
        ({"target": "localhost"}, "--target must be host:port"),
        ({"target_pods": "pod-0"}, "--target-pods must be ip:port"),
        ({"target_ca": "/no/such/file"}, "--target-ca: "),
    ):
        with pytest.raises(pytest.UsageError, match=text):
            options.target_of(configured(**given))


def test_a_target_of_the_users_is_held_to_the_protocol_and_envoy_alone() -> None:
    assert options.levels_of(configured()) == {Level.PROTOCOL, Level.ENVOY}
    assert options.levels_of(configured(target=None)) == set(Level)
    assert options.levels_of(configured(target_profile="aibrix")) == set(Level)
    assert options.modes_of(configured(target_mode="duplex")) == {Mode.DUPLEX, Mode.ANY}


def test_what_must_be_known_is_read_from_the_vector() -> None:
    needs = {vector.id: vector.needs for vector in VECTORS}
    assert needs["subset-restricts"] == ("--target-model", "--target-pods")
    assert needs["pick-by-header"] == ("--target-model",)
    assert needs["steering-gone-on-a-get"] == ()
    assert needs["health-readiness"] == ()
