"""Each pick says what it rests on, in one word, and the words add up."""

from typing import Any

from aibrix_extproc.decide.basis import Basis
from aibrix_extproc.discovery.pods import Rank
from tests.support import eventually_async, free_port
from tests.unit.decide.decide_rig import (
    LONG,
    Rig,
    ask,
    completion,
    engines,
    plain_pod,
    pod_of,
    running,
)

NAME = "aibrix_extproc_decision_basis_total"


def counted(rig: Rig) -> dict[str, float]:
    samples = [s for metric in rig.metrics.registry.collect() for s in metric.samples]
    return {s.labels["basis"]: s.value for s in samples if s.name == NAME}


async def basis_of(rig: Rig, body: dict[str, Any], **more: Any) -> str:
    before = counted(rig)
    await rig.pick(body, **more)
    (word,) = [w for w, n in counted(rig).items() if n != before.get(w, 0)]
    return word


async def test_a_prompt_that_a_pod_holds_rests_on_its_prefix_and_a_new_one_on_load() -> None:
    async with engines(2) as (a, b), running([pod_of(a), pod_of(b)], kv_event_sync=True) as rig:
        await eventually_async(lambda: all(view.usable for view in rig.manager.views()))
        assert await basis_of(rig, completion(LONG)) == Basis.NOTHING_HELD
        await ask(a, LONG)
        assert await basis_of(rig, completion(LONG)) == Basis.PREFIX


async def test_a_prompt_without_a_whole_block_is_short() -> None:
    async with engines(1) as (a,), running([pod_of(a)]) as rig:
        assert await basis_of(rig, completion("hi")) == Basis.SHORT


async def test_a_source_that_may_not_be_believed_is_named_as_the_cause() -> None:
    nowhere = Rank(0, f"tcp://127.0.0.1:{free_port()}", None)
    async with (
        engines(1) as (a,),
        running([pod_of(a, ranks=(nowhere,))], kv_event_sync=True) as rig,
    ):
        assert await basis_of(rig, completion(LONG)) == Basis.NOT_IN_STEP


async def test_a_strategy_that_does_not_read_prompts_is_named() -> None:
    async with running([plain_pod("a")]) as rig:
        headers = {"routing-strategy": "random"}
        assert await basis_of(rig, completion(LONG), headers=headers) == Basis.STRATEGY


async def test_a_body_without_a_prompt_is_named() -> None:
    async with running([plain_pod("a")]) as rig:
        body = {"model": "tiny", "input": "hi"}
        assert await basis_of(rig, body, path="/v1/embeddings") == Basis.NO_PROMPT


async def test_without_tokens_the_reason_is_that_of_the_tokenizer() -> None:
    async with running([plain_pod("a")]) as rig:
        assert await basis_of(rig, completion(LONG)) == "refused"


async def test_the_words_add_up_to_the_picks() -> None:
    async with engines(1) as (a,), running([pod_of(a), plain_pod("bb")]) as rig:
        for number in range(12):
            headers = {"routing-strategy": "random"} if number % 3 == 0 else {}
            await rig.pick(completion(LONG[: 40 * number]), headers=headers)
        assert sum(counted(rig).values()) == 12
        assert len(counted(rig)) >= 3
