"""Pods whose tokens differ are named; remembered tokens go when an engine is another one."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aibrix_extproc.agreement.fingerprints import Difference, Fingerprints
from aibrix_extproc.agreement.tokenizers import ENDPOINT, Tokenizers
from aibrix_extproc.discovery.pods import ListedModel, PodFacts
from aibrix_extproc.settings import Settings
from tests.support import eventually_async
from tests.unit.agreement.agreement_rig import Engines, fake_engines

FLUSHES = "aibrix_extproc_token_flushes_total"
DIFFER = "aibrix_extproc_tokenizers_differ"
ONE, OTHER = 128_256, 64_000


class Rig:
    def __init__(self, engines: Engines, settings: dict[str, Any]) -> None:
        self.engines = engines
        self.registry = engines.registry
        self.fingerprints = Fingerprints()
        self.flushed: list[set[str]] = []
        self.tokenizers = Tokenizers(
            Settings(use_remote_tokenizer=True, **settings),
            engines.metrics,
            engines.registry,
            engines.asker,
            self.fingerprints,
            self.flush,
        )

    def flush(self, names: Collection[str]) -> None:
        self.flushed.append(set(names))

    async def known(self, count: int) -> None:
        await eventually_async(lambda: len(self.fingerprints.page("tiny")) == count)


@asynccontextmanager
async def watched(*vocabularies: int, **settings: Any) -> AsyncIterator[Rig]:
    async with fake_engines(*vocabularies) as engines:
        rig = Rig(engines, settings)
        await rig.tokenizers.start()
        try:
            yield rig
        finally:
            await rig.tokenizers.close()


async def test_pods_that_agree_are_asked_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watched(ONE, ONE) as rig:
        await rig.known(2)
        assert rig.fingerprints.difference("tiny") is None
        assert rig.engines.value(DIFFER, model="tiny") == 0
        assert rig.flushed == []
    assert "tokenizers of tiny" not in caplog.text


async def test_a_pod_that_differs_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(ONE, OTHER, ONE) as rig:
        await rig.known(3)
        difference = rig.fingerprints.difference("tiny")
        assert difference == Difference("text", ("d/p1",), ("d/p0", "d/p2"))
        assert rig.engines.value(DIFFER, model="tiny") == 1
        rig.registry.remove("d/p1")
        assert rig.engines.value(DIFFER, model="tiny") == 0
    assert caplog.text.count("agree → differ at d/p1") == 1


async def test_a_second_version_makes_tokens_be_forgotten() -> None:
    async with watched(ONE, OTHER) as rig:
        await rig.known(2)
        assert rig.flushed == [{"tiny"}]
        assert rig.engines.value(FLUSHES, reason="changed") == 1


async def test_the_tokenizer_endpoint_is_compared_too() -> None:
    async with fake_engines(OTHER) as elsewhere:
        endpoint = f"http://{elsewhere.engines[0].address}"
        async with watched(ONE, ONE, tokenizer_endpoint=endpoint) as rig:
            await rig.known(3)
            difference = rig.fingerprints.difference("tiny")
            assert difference is not None
            assert difference.odd == (ENDPOINT,)
            for key in ("d/p0", "d/p1"):
                rig.registry.remove(key)
            assert rig.fingerprints.page("tiny") == {}


async def test_a_restart_makes_the_tokens_of_that_model_be_forgotten_and_asks_again() -> None:
    async with watched(ONE, ONE) as rig:
        await rig.known(2)
        facts = PodFacts(models=(ListedModel("tiny"), ListedModel("ad", "tiny")))
        rig.registry.learn(rig.engines.pod(0).identity, facts)
        rig.registry.upsert(rig.engines.pod(1, name="else", model="other"))
        rig.fingerprints.forget("tiny", "d/p0")
        rig.tokenizers.restarted("d/p0")
        assert rig.flushed == [{"tiny", "ad"}]
        assert rig.engines.value(FLUSHES, reason="restart") == 1
        await rig.known(2)
        rig.tokenizers.restarted("d/gone")
        assert len(rig.flushed) == 1


async def test_another_engine_under_a_known_name_makes_them_be_forgotten() -> None:
    async with watched(ONE) as rig:
        await rig.known(1)
        rig.registry.upsert(rig.engines.pod(0, uid="another"))
        assert rig.flushed == [{"tiny"}]
        assert rig.engines.value(FLUSHES, reason="replaced") == 1
        await rig.known(1)


async def test_a_pod_that_comes_or_changes_its_labels_forgets_nothing() -> None:
    async with watched(ONE, ONE) as rig:
        await rig.known(2)
        rig.registry.upsert(rig.engines.pod(0, labels={"a": "b"}))
        rig.registry.upsert(rig.engines.pod(0, name="p9"))
        await rig.known(3)
        assert rig.flushed == []


async def test_a_pod_is_asked_again_when_it_is_ready_again() -> None:
    async with watched(ONE, ONE) as rig:
        await rig.known(2)
        rig.registry.upsert(rig.engines.pod(0, ready=False))
        rig.fingerprints.forget("tiny", "d/p0")
        rig.registry.upsert(rig.engines.pod(0))
        await rig.known(2)


async def test_with_the_check_off_a_restart_still_forgets() -> None:
    async with watched(ONE, tokenizer_check_interval_s=0.0) as rig:
        rig.tokenizers.restarted("d/p0")
        assert rig.flushed == [{"tiny"}]
        assert rig.fingerprints.page("tiny") == {}


async def test_a_pod_that_does_not_answer_is_asked_again(monkeypatch: Any) -> None:
    monkeypatch.setattr("aibrix_extproc.agreement.tokenizers._RETRY_S", 0.05)
    async with watched(ONE, ONE) as rig:
        await rig.known(2)
        await rig.engines.engines[0].close()
        rig.fingerprints.forget("tiny", "d/p0")
        rig.tokenizers.restarted("d/p0")
        reason = {"reason": "tokenize_connection"}
        await eventually_async(
            lambda: rig.engines.value("aibrix_extproc_agreement_errors_total", **reason) >= 2
        )


async def test_it_can_be_closed_in_the_moment_in_which_a_pod_comes() -> None:
    async with watched(ONE) as rig:
        await rig.known(1)
        rig.tokenizers.restarted("d/p0")
        closing = asyncio.create_task(rig.tokenizers.close())
        done, _ = await asyncio.wait([closing], timeout=2.0)
        closing.cancel()
        assert done
