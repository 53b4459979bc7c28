"""How many prompts are tokenized after their decision at one time."""

import pytest

from aibrix_extproc.metrics import Metrics
from aibrix_extproc.tokenizer import pool as pool_module
from aibrix_extproc.tokenizer.types import Tokens
from tests.support import eventually_async
from tests.unit.tokenizer.pool_rig import completion, counted, started
from tests.unit.tokenizer.tokenizer_server import tokenizer_server

LATER = "aibrix_extproc_tokenized_later_total"


async def test_late_tokenizations_past_the_bound_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "MAX_LATER", 3)
    metrics = Metrics()
    learned: list[Tokens] = []
    async with tokenizer_server() as server, started(metrics) as pool:
        server.gate.clear()
        for number in range(5):
            pool.tokenize_later(completion(f"{number}"), [server.address], learned.append)
        assert counted(metrics, LATER, result="dropped") == 2
        server.gate.set()
        await eventually_async(lambda: len(learned) == 3)
        pool.tokenize_later(completion("again"), [server.address], learned.append)
        await eventually_async(lambda: len(learned) == 4)
