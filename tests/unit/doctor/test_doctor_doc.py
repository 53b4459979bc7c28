"""docs/doctor.md against the code; and every code against the list of misconfigurations."""

import argparse
import re
from pathlib import Path

import pytest

from aibrix_extproc.doctor.catalog import CHECK_FAILED, CHECKS, CODES
from aibrix_extproc.doctor.findings import OK, SKIPPED, Area, Code, Severity
from aibrix_extproc.doctor.kubernetes_reads import KUBERNETES_READS
from aibrix_extproc.doctor.options import add_arguments
from tests.unit.doctor import test_doctor_wrong_cluster as cluster
from tests.unit.doctor import test_doctor_wrong_engines as engines
from tests.unit.doctor import test_doctor_wrong_envoy as envoy
from tests.unit.doctor import test_doctor_wrong_server as server
from tests.unit.doctor import test_doctor_wrong_variables as variables

PAGE = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()
FOLDER = Path(__file__).parent


def row(code: Code) -> str:
    """The line of the page's table for a code."""
    severity = f"{code.severity} or {Severity.YELLOW}" if code.milder else str(code.severity)
    return f"| `{code.name}` | {severity} | {code.means} | {code.do} |"


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_each_code_is_explained(code: Code) -> None:
    assert row(code) in PAGE


def test_no_other_code_is_on_the_page() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (?:red|yellow)", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(code.name for code in CODES)


@pytest.mark.parametrize("area", Area)
def test_each_area_has_its_own_table(area: Area) -> None:
    found = re.search(rf"^### {area}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL | re.I)
    assert found is not None
    rows = re.findall(r"^\| `([a-z0-9-]+)`", found[1], re.MULTILINE)
    assert rows == [code.name for code in CODES if code.area is area]


def test_the_page_names_every_option_and_both_codes_of_what_is_not_wrong() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = [o for action in parser._actions for o in action.option_strings if o[:2] == "--"]
    assert [o for o in options if o != "--help" and f"`{o}" not in PAGE] == []
    assert f"`{OK}`" in PAGE
    assert f"`{SKIPPED}`" in PAGE


def test_the_page_names_what_is_read_from_kubernetes() -> None:
    for read in KUBERNETES_READS:
        assert read.resource in PAGE


def test_every_code_is_found_by_a_test_that_makes_the_trouble() -> None:
    listed = [
        *variables.VARIABLES,
        *variables.FILES,
        *engines.HTTP,
        *cluster.PODS,
        *envoy.OVERRIDE,
        *envoy.ORIGINAL,
        *server.PAGES,
    ]
    found = {code for case in listed for code in case[-1]}
    for path in FOLDER.glob("test_doctor_*.py"):
        if path.name != Path(__file__).name:
            found |= set(re.findall(r'"([a-z0-9-]+)"', path.read_text()))
    assert [code.name for code in CODES if code.name not in found] == []
    wrong = [case for case in listed if case[-1]]
    assert len(wrong) > 100


def test_every_check_has_a_name_of_its_own_within_its_area() -> None:
    names = [(check.area, check.title) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert CHECK_FAILED in CODES
