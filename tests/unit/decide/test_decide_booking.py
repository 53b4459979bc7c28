"""What follows a decision: load, predictions, metrics, shadow mode, the record."""

import asyncio
import json
from typing import Any

import pytest

from aibrix_extproc import errors
from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.routing.types import Load
from aibrix_extproc.routing.words import match_bucket
from tests.support import eventually_async
from tests.unit.decide.decide_rig import (
    LEAST,
    LONG,
    ask,
    completion,
    engines,
    plain_pod,
    pod_of,
    request,
    running,
)

# -- what follows -------------------------------------------------------------------------------


async def test_load_is_reserved_until_the_answer_has_ended() -> None:
    async with running([plain_pod("a")]) as rig:
        picked = await rig.pick(completion(LONG), headers={"routing-strategy": "random"})
        source = picked.decision.chosen.candidate.source
        load = rig.ledger.loads(0.0)[source]
        assert (load.requests, load.prefill_tokens) == (1, picked.prompt_tokens)
        rig.decider.prefill_done(picked.ticket)
        assert rig.ledger.loads(0.0)[source].decoding == 1
        rig.decider.release(picked.ticket)
        assert not rig.ledger.loads(0.0)


async def test_where_the_end_is_not_seen_the_reservation_lasts_as_long_as_the_answer_should() -> (
    None
):
    async with running(
        [plain_pod("a")], expected_token_time_s=0.001, reservation_limit_s=1000.0
    ) as rig:
        headers = {"routing-strategy": "random"}
        await rig.pick({**completion("hi"), "max_tokens": 20}, headers=headers, end_seen=False)
        await rig.pick({**completion("hi"), "max_tokens": 20}, headers=headers, end_seen=True)
        loop = asyncio.get_running_loop()
        await eventually_async(lambda: len(rig.ledger.loads(loop.time())) == 1)
        await eventually_async(
            lambda: sum(load.requests for load in rig.ledger.loads(loop.time()).values()) == 1
        )


async def test_a_limit_of_tokens_beyond_all_reason_lasts_as_long_as_any_reservation() -> None:
    async with running([plain_pod("a")], reservation_limit_s=1000.0) as rig:
        body = {**completion("hi"), "max_tokens": 10**400}
        headers = {"routing-strategy": "random"}
        picked = await rig.pick(body, headers=headers, end_seen=False)
        assert isinstance(picked.ticket, Trip)
        assert 900 < picked.ticket.ticket.deadline_s - asyncio.get_running_loop().time() <= 1000


async def test_explain_says_why_and_reserves_nothing() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two], kv_event_sync=True) as rig:
        await eventually_async(rig.manager.synced)
        await ask(two[0], LONG)
        await eventually_async(lambda: rig.index.stats().placements)
        told = await rig.decider.explain(request(completion(LONG)))
        assert told["reason"] == "prefix"
        best, other = told["candidates"]
        assert best["pod"] == "default/e0"
        assert best["depth"] * best["block_size"] >= best["reusable_tokens"] > 300
        assert other["reusable_tokens"] == 0
        assert best["score"] < other["score"]
        assert not rig.ledger.loads(0.0)
        assert len(rig.predictions) == 0
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == 0
        json.dumps(told)


async def test_a_decision_is_counted_under_aibrix_names() -> None:
    async with engines(2) as two, running([pod_of(e) for e in two]) as rig:
        rig.decider.release((await rig.pick(completion(LONG))).ticket)
        await rig.pick(completion(LONG))
        for bucket in ("0", "76-99"):
            assert (
                rig.value(
                    "aibrix_prefix_cache_routing_decisions_total",
                    model="tiny",
                    match_percent_bucket=bucket,
                    using_kv_sync="false",
                )
                == 1
            )


async def test_the_metrics_of_decisions_can_be_switched_off() -> None:
    async with engines(1) as one, running([pod_of(one[0])], decision_metrics=False) as rig:
        await rig.pick(completion(LONG))
        assert rig.value("aibrix_extproc_prompt_tokens_total", model="tiny") == 0


@pytest.mark.parametrize(
    ("matched", "length", "bucket"),
    [
        (0, 100, "0"),
        (0, 0, "0"),
        (1, 1000, "0"),
        (1, 100, "1-25"),
        (26, 100, "26-50"),
        (51, 100, "51-75"),
        (99, 100, "76-99"),
        (100, 100, "100"),
    ],
)
def test_the_share_that_matched_falls_into_aibrix_buckets(
    matched: int, length: int, bucket: str
) -> None:
    assert match_bucket(matched, length) == bucket


# -- shadow mode ------------------------------------------------------------------------------


async def test_in_shadow_mode_it_is_decided_as_ever_and_counted_by_the_pod() -> None:
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        rig.shadow = True
        picks = [await rig.pick(completion("x"), headers=LEAST) for _ in range(4)]
        assert all(pick.shadow for pick in picks)
        # Their load is reserved, else all would go to one pod.
        for name in ("a", "bb"):
            assert rig.value("aibrix_extproc_shadow_picks_total", pod=f"default/{name}") == 2
        rig.shadow = False
        assert not (await rig.pick(completion("x"), headers=LEAST)).shadow
        assert rig.value("aibrix_extproc_shadow_picks_total", pod="default/a") == 2


async def test_who_serves_in_shadow_mode_says_nothing_of_the_pick_and_moves_no_load() -> None:
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        rig.shadow = True
        pick = await rig.pick(completion("x"), headers=LEAST)
        chosen = pick.decision.chosen.candidate
        other = next(pod for pod in rig.registry.pods() if pod.key != chosen.pod.key)
        ticket: Any = pick.ticket
        rig.decider.prefill_done(ticket, other.address, True)
        assert rig.value("aibrix_extproc_picks_total", result="other") == 0
        assert rig.ledger.loads(0.0)[chosen.source].decoding == 1
        rig.decider.release(ticket)
        assert rig.ledger.loads(0.0).get(chosen.source, Load()).requests == 0


# -- what is remembered -----------------------------------------------------------------------


async def test_a_decision_is_remembered_with_its_request_and_no_word_of_its_prompt() -> None:
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    async with running([plain_pod("a"), plain_pod("bb")]) as rig:
        body = completion("a secret prompt")
        picked = await rig.pick(body, headers=LEAST, traceparent=traceparent)
        (record,) = rig.decider.ring.newest_first(10, "id")
        assert record.traceparent == traceparent
        assert record.decision.chosen == picked.decision.chosen
        assert (record.candidates, record.shadow, record.fallback) == (2, False, None)
        assert record.took_s >= 0
        assert "secret" not in str(record)


async def test_a_fallback_is_remembered_with_its_reason() -> None:
    async with running([plain_pod("a")]) as rig:
        await rig.pick(completion("x"))
        (record,) = rig.decider.ring.newest_first(1)
        assert record.fallback is not None
        assert record.tokens_known is False


async def test_to_explain_leaves_no_record_and_neither_does_an_error() -> None:
    async with running([plain_pod("a")]) as rig:
        await rig.decider.explain(request(completion("x"), headers=LEAST))
        with pytest.raises(errors.ModelNotFound):
            await rig.decider.decide(request(completion("x", model="none")))
        assert rig.decider.ring.newest_first(1) == []
