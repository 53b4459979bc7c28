"""When a prompt counts as computed, with a real index, event sync and fake engines.

The head of a streamed answer comes here before the engine has the prompt, as vLLM sends it.
"""

import logging

import pytest

from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.routing.types import Load
from tests.support import eventually_async
from tests.unit.decide.decide_rig import LONG, Rig, ask, completion, engines, pod_of, running


def trip(picked: Picked) -> Trip:
    assert isinstance(picked.ticket, Trip)
    return picked.ticket


async def headed(rig: Rig, engine: FakeEngine, prompt: str, stream: bool = True) -> Trip:
    """A decided request whose answer's head has come."""
    picked = await rig.pick({**completion(prompt), "stream": stream})
    rig.decider.prefill_done(trip(picked), engine.address, True)
    return trip(picked)


def load(rig: Rig, one: Trip) -> Load:
    return rig.ledger.booked.get(one.source, Load())


def told(rig: Rig, by: str) -> float:
    return rig.value("aibrix_extproc_prefills_total", told_by=by)


async def computed(rig: Rig, engine: FakeEngine, prompt: str) -> None:
    """The engine has computed a prompt, and its events are in the index."""
    await ask(engine, prompt)
    publisher = engine.ranks[0].publisher
    assert publisher is not None
    source = next(iter(rig.manager.candidates(rig.registry.pods()))).source
    await eventually_async(lambda: publisher.sent_all)
    await eventually_async(lambda: rig.manager.sequence(source) == publisher.sequence - 1)


async def test_the_head_of_a_streamed_answer_does_not_say_that_its_prompt_is_computed() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], f"before {LONG}")
        first = await headed(rig, one[0], LONG)
        owed = load(rig, first)
        assert owed.decoding == 0
        assert owed.prefill_tokens == first.prompt_tokens
        await computed(rig, one[0], LONG)
        await eventually_async(lambda: load(rig, first).decoding == 1)
        assert load(rig, first).prefill_tokens == 0
        assert (told(rig, "events"), told(rig, "head")) == (1, 0)


async def test_an_answer_that_comes_whole_is_computed_when_its_head_comes() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], f"before {LONG}")
        whole = await headed(rig, one[0], LONG, stream=False)
        assert load(rig, whole).decoding == 1
        assert told(rig, "head") == 1


async def test_without_events_the_head_is_all_there_is() -> None:
    async with engines(1) as one, running([pod_of(one[0], kv_events=False)]) as rig:
        blind = await headed(rig, one[0], LONG)
        assert load(rig, blind).decoding == 1
        assert told(rig, "head") == 1


async def test_a_prompt_that_is_held_is_not_waited_for() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], LONG)
        held = await headed(rig, one[0], LONG)
        assert load(rig, held).decoding == 1
        assert told(rig, "head") == 1


async def test_what_was_sent_before_a_prompt_that_is_computed_is_computed_too() -> None:
    """An engine takes them in turn; here the tokens of the first are not those that it sees."""
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], f"before {LONG}")
        first = await headed(rig, one[0], f"first {LONG}")
        await headed(rig, one[0], f"second {LONG}")
        assert load(rig, first).decoding == 0
        await computed(rig, one[0], f"second {LONG}")
        await eventually_async(lambda: load(rig, first).decoding == 2)
        assert (told(rig, "later"), told(rig, "events")) == (1, 1)


async def test_a_pod_that_goes_is_waited_for_no_more() -> None:
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], f"before {LONG}")
        gone = await headed(rig, one[0], LONG)
        rig.registry.replace([])
        await eventually_async(lambda: told(rig, "head") == 1)
        rig.decider.release(gone)
        assert rig.ledger.booked == {}


async def test_a_source_whose_blocks_are_not_seen_is_not_waited_for_until_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with engines(1) as one, running([pod_of(one[0])], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await computed(rig, one[0], f"before {LONG}")
        for number in range(3):
            rig.decider.release(await headed(rig, one[0], f"{number} {LONG}"))
        assert told(rig, "end") == 3
        assert "prefills of default/e0: ok → not seen" in caplog.text
        believed = await headed(rig, one[0], f"now {LONG}")
        assert load(rig, believed).decoding == 1
        await computed(rig, one[0], f"now {LONG}")
        await eventually_async(lambda: "not seen → ok" in caplog.text)
        rig.decider.release(believed)
        waited = await headed(rig, one[0], f"again {LONG}")
        assert load(rig, waited).decoding == 0
        assert told(rig, "head") == 1
