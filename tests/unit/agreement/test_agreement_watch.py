"""From decided requests to verdicts, with a real index, event sync and fake engines."""

import asyncio
from typing import Any

import pytest

from aibrix_extproc.agreement.promises import DEADLINE_S, FIRST_LOOK_S
from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.agreement.usage import NoUsage, Usage
from aibrix_extproc.agreement.watch import Agreement
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.fakes.engine import FakeEngine
from tests.support import eventually_async
from tests.unit.decide.decide_rig import LONG, Rig, ask, completion, engines, pod_of, running

PROMISES = "aibrix_extproc_promises_total"
DOUBTED = "aibrix_extproc_doubted_pods"
SAMPLES = "aibrix_extproc_usage_samples_total"


class Clock:
    """The loop's time, and what a test adds."""

    def __init__(self, agreement: Agreement) -> None:
        self.added_s = 0.0
        usual = agreement._clock
        agreement._clock = lambda: usual() + self.added_s

    def pass_(self, seconds: float) -> None:
        self.added_s += seconds


def trip(picked: Picked) -> Trip:
    assert isinstance(picked.ticket, Trip)
    return picked.ticket


def found(rig: Rig, result: str) -> float:
    return rig.value(PROMISES, model="tiny", pod="default/e0", result=result)


async def served(
    rig: Rig, engine: FakeEngine, prompt: str, *, as_sent: bool = True, **fields: Any
) -> None:
    """Decide a prompt; the engine computes it, or another one in its place."""
    picked = await rig.pick({**completion(prompt), **fields})
    await ask(engine, prompt if as_sent else f"other {prompt}")
    publisher = engine.ranks[0].publisher
    assert publisher is not None
    source = picked.decision.chosen.candidate.source
    await eventually_async(lambda: publisher.sent_all)
    await eventually_async(lambda: rig.manager.sequence(source) == publisher.sequence - 1)
    rig.decider.prefill_done(trip(picked), engine.address, True)
    rig.decider.release(trip(picked))


async def test_blocks_that_were_announced_confirm_what_was_sent() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        agreement = rig.decider.agreement
        clock = Clock(agreement)
        await served(rig, one[0], LONG)
        agreement.tick()
        assert found(rig, "confirmed") == 0
        clock.pass_(FIRST_LOOK_S)
        agreement.tick()
        assert found(rig, "confirmed") == 1
        assert rig.value(DOUBTED, model="tiny", kind="plain") == 0


async def test_an_engine_that_announces_other_blocks_is_doubted_with_causes_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        agreement = rig.decider.agreement
        clock = Clock(agreement)
        for number in range(8):
            await served(rig, one[0], f"{number} {LONG}", as_sent=False)
        clock.pass_(DEADLINE_S)
        for _ in range(3):
            agreement.tick()
            clock.pass_(60.0)
        assert found(rig, "unconfirmed") == 8
        assert rig.value(DOUBTED, model="tiny", kind="plain") == 1
        (warning,) = agreement.page()["models"]["tiny"]["warnings"]
        assert warning["pods"] == ["default/e0"]
        assert any("chat template" in cause for cause in warning["likely_causes"])
        assert caplog.text.count("agree → disagree at default/e0") == 1
        assert "word1" not in caplog.text + str(agreement.page())
        rig.registry.remove("default/e0")
        agreement.on_pod(pod_of(one[0]), None)
        assert rig.metrics.registry.get_sample_value(
            DOUBTED, {"model": "tiny", "kind": "plain"}
        ) is None  # fmt: skip


async def test_salted_requests_are_judged_by_themselves() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        agreement = rig.decider.agreement
        clock = Clock(agreement)
        for number in range(8):
            # As before vLLM 0.17: the engine's events carry no salt.
            await served(rig, one[0], f"{number} {LONG}", cache_salt="s")
        clock.pass_(DEADLINE_S)
        agreement.tick()
        assert rig.value(DOUBTED, model="tiny", kind="salted") == 1
        assert rig.value(DOUBTED, model="tiny", kind="plain") == 0
        (warning,) = agreement.page()["models"]["tiny"]["warnings"]
        assert "cache_salt" in warning["likely_causes"][0]


async def test_a_source_that_was_emptied_shows_nothing() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        agreement = rig.decider.agreement
        clock = Clock(agreement)
        await served(rig, one[0], LONG, as_sent=False)
        (source,) = [view.source for view in rig.manager.views()]
        await asyncio.to_thread(agreement.emptied, source)
        clock.pass_(DEADLINE_S)
        agreement.tick()
        assert (found(rig, "void"), found(rig, "unconfirmed")) == (1, 0)


async def test_an_answer_that_failed_or_came_from_elsewhere_is_not_looked_for() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        agreement = rig.decider.agreement
        failed, moved = await rig.pick(completion(LONG)), await rig.pick(completion(f"x {LONG}"))
        agreement.answered(trip(failed), failed.decision.chosen.candidate.pod.address, False)
        other = [e.address for e in two if e.address != moved.decision.chosen.candidate.pod.address]
        agreement.answered(trip(moved), other[0], True)
        assert len(agreement._promises) == 0
        assert trip(failed).ids is None


async def test_a_sample_is_compared_with_its_decision() -> None:
    async with engines(1) as one, running([pod_of(one[0])], usage_sample=1.0) as rig:
        picked = await rig.pick(completion(LONG))
        assert picked.is_sampled
        rig.decider.observed(trip(picked), NoUsage.NO_DETAILS)
        rig.decider.release(trip(picked))
        rig.decider.agreement.tick()  # no answer of it was seen: it is followed no more
        rig.decider.observed(trip(picked), Usage(picked.prompt_tokens, 0))
        rig.decider.observed(trip(picked), Usage(picked.prompt_tokens + 1, 0))
        for result in ("equal", "length", "no_details"):
            assert rig.value(SAMPLES, model="tiny", result=result) == 1


@pytest.mark.parametrize(
    ("fields", "sampled"),
    [
        ({}, True),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
        ({"n": 2}, False),
        ({"prompt": ["one", "two"]}, False),
    ],
)
async def test_only_answers_that_would_say_something_are_sampled(
    fields: dict[str, Any], sampled: bool
) -> None:
    async with engines(1) as one, running([pod_of(one[0])], usage_sample=1.0) as rig:
        assert (await rig.pick({**completion(LONG), **fields})).is_sampled is sampled


async def test_no_share_samples_nothing() -> None:
    async with engines(1) as one, running([pod_of(one[0])], usage_sample=0.0) as rig:
        assert not (await rig.pick(completion(LONG))).is_sampled


async def test_that_bodies_are_not_handed_over_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with engines(1) as one, running([pod_of(one[0])], usage_sample=1.0) as rig:
        picked = await rig.pick(completion(LONG))
        for _ in range(5):
            rig.decider.observed(trip(picked), NoUsage.NOT_SENT)
        assert caplog.text.count("allow_mode_override") == 1
