"""Predicted reuse beside the engines' own counters, by model."""

import aiohttp

from aibrix_extproc.agreement.reuse import Reuse
from aibrix_extproc.settings import Settings
from tests.unit.agreement.agreement_rig import Engines, fake_engines

DIFFERENCE = "aibrix_extproc_reuse_share_difference"
PROMPT = " ".join(f"w{number}" for number in range(1200))


def reuse(rig: Engines) -> Reuse:
    return Reuse(Settings(), rig.metrics, rig.registry, rig.asker)


async def ask(rig: Engines, number: int = 0) -> int:
    """Prompt tokens of one request, sent past any processor."""
    url = f"http://{rig.engines[number].address}/v1/completions"
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
        return int((await reply.json())["usage"]["prompt_tokens"])


async def test_shares_of_the_same_time_are_compared() -> None:
    async with fake_engines(128_256, 128_256) as rig:
        compared = reuse(rig)
        await compared.read()
        for _ in range(2):
            tokens = await ask(rig, 1)
            compared.scheduled("tiny", tokens, 0)
        await compared.read()
        assert rig.value("aibrix_extproc_engine_prompt_tokens_total", model="tiny") == 2 * tokens
        found = rig.value("aibrix_extproc_engine_cached_tokens_total", model="tiny")
        assert found > tokens - 32
        # Nothing was predicted, and half was reused.
        assert rig.value(DIFFERENCE, model="tiny") == -found / (2 * tokens)


async def test_few_tokens_wait_for_more() -> None:
    async with fake_engines(128_256) as rig:
        compared = reuse(rig)
        await compared.read()
        compared.scheduled("tiny", 10, 10)
        await ask(rig)
        await compared.read()
        assert rig.metrics.registry.get_sample_value(DIFFERENCE, {"model": "tiny"}) is None
        compared.scheduled("tiny", 3000, 3000)
        await compared.read()
        assert rig.value(DIFFERENCE, model="tiny") == 1.0


async def test_a_model_without_pods_is_forgotten() -> None:
    async with fake_engines(128_256) as rig:
        compared = reuse(rig)
        await compared.read()
        tokens = await ask(rig)
        compared.scheduled("tiny", tokens, 0)
        await compared.read()
        assert rig.metrics.registry.get_sample_value(DIFFERENCE, {"model": "tiny"}) == 0.0
        rig.registry.remove("d/p0")
        await compared.read()
        assert rig.metrics.registry.get_sample_value(DIFFERENCE, {"model": "tiny"}) is None


async def test_only_ready_pods_are_asked() -> None:
    async with fake_engines(128_256) as rig:
        await rig.engines[0].close()
        rig.registry.upsert(rig.pod(0, ready=False))
        await reuse(rig).read()
        reason = {"reason": "metrics_connection"}
        assert rig.value("aibrix_extproc_agreement_errors_total", **reason) == 0
