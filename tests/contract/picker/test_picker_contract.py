"""The endpoint-picker contract: every vector against the picker of `--target`, else this server.

This server is the real process with three fake engines and an endpoints file.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.picker import options
from tests.contract.picker.exchange import Target
from tests.contract.picker.runner import missing_knowledge, run
from tests.contract.picker.serving import this_server
from tests.contract.picker.vectors import Mode, Vector, load

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.drives_target]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each vector of the profile and each of its modes."""
    levels, modes = options.levels_of(metafunc.config), options.modes_of(metafunc.config)
    cases = [
        pytest.param(vector, mode, id=f"{vector.topic}/{vector.id}-{mode}")
        for vector in load()
        if vector.level in levels
        for mode in vector.modes
        if mode in modes
    ]
    metafunc.parametrize(("vector", "mode"), cases)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    if options.has_target(request.config):
        yield options.target_of(request.config)
        return
    async with this_server() as server:
        yield server


async def test_the_picker_keeps_the_rule(vector: Vector, mode: Mode, target: Target) -> None:
    if reason := missing_knowledge(vector, target):
        pytest.skip(reason)
    verdict = await run(vector, mode, target)
    if not verdict.holds:
        pytest.fail(verdict.failure, pytrace=False)
