"""What several modules of doctor's tests begin with."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST
from tests.kv_publisher import KvPublisher, stored
from tests.unit.doctor.doctor_rig import real_dump
from tests.unit.doctor.dump_rig import Json


@pytest.fixture(scope="session")
def dumps() -> dict[str, Json]:
    """Of the real Envoy, once for each shipped file."""
    names = (OVERRIDE_HOST, ORIGINAL_DST)

    async def both() -> list[str]:
        return list(await asyncio.gather(*(real_dump(name) for name in names)))

    return {n: json.loads(text) for n, text in zip(names, asyncio.run(both()), strict=True)}


@pytest.fixture
def publisher() -> Iterator[KvPublisher]:
    with KvPublisher() as running:
        running.publish(stored([1, 2], block_size=16))
        yield running
