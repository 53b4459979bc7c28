"""The suite sees a wrong endpoint picker, says readably what is wrong, and lets right ones pass."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from tests.certificates import Authority
from tests.contract.picker.crude_servers import CRUDE, crude_server
from tests.contract.picker.exchange import Target
from tests.contract.picker.faults import FAULTS, NONE, Fault
from tests.contract.picker.runner import run
from tests.contract.picker.serving import this_server
from tests.contract.picker.tiny_picker import tiny_picker
from tests.contract.picker.vectors import load
from tests.contract.picker.wrong_server import wrong_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

VECTORS = {vector.id: vector for vector in load()}
ROOT = Path(__file__).parents[3]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def right() -> AsyncIterator[Target]:
    async with this_server() as server:
        yield server


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_the_vector_that_names_the_rule_fails_readably(right: Target, fault: Fault) -> None:
    async with wrong_server(replace(right, timeout_s=1.5), fault) as wrong:
        for name in fault.breaks:
            text = (await run(VECTORS[name], fault.mode, wrong)).failure
            assert text.startswith(f"{name} [{fault.mode}] does not hold"), text or "it passed"
            assert f"rule    {VECTORS[name].rule}" in text
            for beginning in ("wrong   ", "sent  ", "got   "):
                assert any(line.startswith(beginning) for line in text.splitlines()), text


async def test_without_a_fault_the_same_vectors_hold(right: Target) -> None:
    async with wrong_server(right, NONE) as same:
        for fault in FAULTS:
            for name in fault.breaks:
                assert (await run(VECTORS[name], fault.mode, same)).failure == ""


async def test_each_vector_fails_against_a_server_that_is_wrong_in_everything() -> None:
    """A vector that nothing can fail would say nothing."""
    few = [replace(vector, streams=min(vector.streams, 2)) for vector in VECTORS.values()]
    cases = [(vector, mode) for vector in few for mode in vector.modes]
    passing = {f"{vector.id} [{mode}]" for vector, mode in cases}
    for replies in CRUDE.values():
        async with crude_server(replies) as crude:
            verdicts = await asyncio.gather(*(run(*case, crude) for case in cases))
        for (vector, mode), verdict in zip(cases, verdicts, strict=True):
            if not verdict.holds:
                passing.discard(f"{vector.id} [{mode}]")
    assert sorted(passing) == []


async def pytest_run(*arguments: str) -> tuple[int, str]:
    """`pytest tests/contract` as a user runs it: its exit code and its output."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "tests/contract", "-p", "no:cacheprovider"),
        *arguments,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out.decode()


async def test_a_picker_of_another_make_passes_the_profile_epp() -> None:
    """It writes JSON anew, answers errors in plain text and knows nothing of AIBrix."""
    async with tiny_picker() as tiny:
        pods = ("--target-pods", ",".join(tiny.pods))
        code, out = await pytest_run("--target", tiny.address, "--target-model", tiny.model, *pods)
    assert code == 0, out
    assert "tests of tests/contract that drive no target are deselected" in out
    assert "skipped" not in out.splitlines()[-1]
    assert "failed" not in out.splitlines()[-1]


async def test_a_picker_is_asked_over_tls_where_its_authority_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("picker")
    own = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())])
    async with tiny_picker(own) as tiny:
        named = replace(tiny, authority=authority.path.read_bytes())
        for name in ("pick-by-header", "health-readiness"):
            vector = VECTORS[name]
            assert (await run(vector, vector.modes[0], named)).failure == ""
            unnamed = await run(vector, vector.modes[0], replace(tiny, timeout_s=1.0))
            assert "UNAVAILABLE" in unnamed.failure


async def test_the_command_fails_on_a_wrong_picker_and_says_what_is_wrong(right: Target) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "early-ok-end")
    async with wrong_server(right, fault) as wrong:
        code, out = await pytest_run(
            *("--target", wrong.address, "--target-mode", "duplex", "-k", "early-end")
        )
    assert code == 1, out
    assert "rule    In duplex a picker that gives a stream up" in out
    assert "wrong   the stream was ended with OK before the body was complete" in out
    assert "needs --target-model" in out  # what could not be run, and why
