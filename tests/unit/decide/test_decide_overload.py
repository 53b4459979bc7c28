"""Requests that no pod can begin in time: refused, sent elsewhere, or let through."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.errors import Overloaded
from aibrix_extproc.extproc.decides import Picked
from aibrix_extproc.routing.admission import MAX_RETRY_AFTER_S
from aibrix_extproc.routing.pace import REQUEST_TOKENS
from aibrix_extproc.routing.strategies import STRATEGIES
from tests.unit.decide.decide_rig import Rig, completion, plain_pod, request, running

LIMIT_S = 2.0
PROMPT = "x" * (4 * (1000 - REQUEST_TOKENS))
"""What takes a second at 1,000 tokens a second: nobody tokenizes it, so its bytes / 4 count."""
A, B = "default/a", "default/bb"


class World:
    """A rig on a clock of its own, whose pods compute 1,000 tokens a second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rig: Rig

    async def send(self, only: str = "", stream: bool = True, strategy: str = "") -> Trip:
        headers = {"routing-strategy": strategy or "least-request"}
        if only:
            headers["external-filter"] = f"is={only}"
        body = {**completion(PROMPT), "stream": stream}
        picked = await self.rig.pick(body, headers=headers)
        trip = picked.ticket
        assert isinstance(trip, Trip)
        return trip

    def begins(self, trip: Trip, succeeded: bool = True) -> None:
        self.rig.decider.prefill_done(trip, trip.pod.address, succeeded)

    async def learn(self) -> None:
        """Both pods answer some requests, one after the other."""
        for _ in range(4):
            for only in ("a", "b"):
                trip = await self.send(only)
                self.now += 1.0
                self.begins(trip)
                self.rig.decider.release(trip)

    async def fill(self, only: str = "") -> list[Trip]:
        """As many requests to each pod as can begin within the limit, and one more."""
        names = [only] if only else ["a", "b"]
        return [await self.send(name) for name in names for _ in range(3)]

    def counted(self, result: str) -> float:
        return self.rig.value("aibrix_extproc_overload_total", result=result)


@asynccontextmanager
async def world(**settings: Any) -> AsyncIterator[World]:
    made = World()
    pods = [plain_pod("a", labels={"is": "a"}), plain_pod("bb", labels={"is": "b"})]
    settings = {"max_start_delay_s": LIMIT_S, **settings}
    async with running(pods, clock=lambda: made.now, **settings) as rig:
        made.rig = rig
        yield made


async def test_a_request_that_no_pod_can_begin_in_time_is_refused_and_told_when_to_come() -> None:
    async with world() as here:
        await here.learn()
        await here.fill()
        with pytest.raises(Overloaded) as refused:
            await here.send()
        error = refused.value
        assert (error.status, error.code, error.reason) == (429, "overloaded", "overload")
        assert error.model_label == "tiny"
        after_s = int(error.headers["retry-after"])
        assert 1 <= after_s <= MAX_RETRY_AFTER_S
        assert f"Try again in {after_s} s." in error.message
        assert (here.counted("refused"), here.counted("elsewhere")) == (1, 0)


async def test_a_refused_request_leaves_nothing_behind() -> None:
    async with world() as here:
        await here.learn()
        await here.fill()
        loads = dict(here.rig.ledger.booked)
        decided = here.rig.value("aibrix_extproc_decision_basis_total", basis="strategy")
        with pytest.raises(Overloaded):
            await here.send()
        assert dict(here.rig.ledger.booked) == loads
        assert here.rig.value("aibrix_extproc_decision_basis_total", basis="strategy") == decided


async def test_it_is_let_in_again_when_the_pods_have_come_down() -> None:
    async with world() as here:
        await here.learn()
        first, *_ = await here.fill()
        with pytest.raises(Overloaded):
            await here.send()
        here.now += 1.0
        here.begins(first)
        assert await here.send()


async def test_off_which_is_the_default_nobody_is_refused_and_no_account_is_kept() -> None:
    async with world(max_start_delay_s=0.0) as here:
        trips = [await here.send() for _ in range(200)]
        assert {trip.work for trip in trips} == {None}
        explained = await here.rig.decider.explain(request(completion(PROMPT)))
        assert explained["overload"] is None
        assert "start_delay_s" not in explained["candidates"][0]
        assert here.rig.value("aibrix_extproc_start_delay_seconds_count") == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_whatever_the_strategy_prefers_a_pod_that_can_begin_in_time_is_chosen(
    strategy: str,
) -> None:
    """`a` has little to answer and much to compute, `bb` decodes much and could begin at once."""
    async with world(decode_weight_tokens=10_000.0) as here:
        await here.learn()
        for _ in range(8):
            here.begins(await here.send("b"))
        await here.fill("a")
        for _ in range(5):
            trip = await here.send(strategy=strategy)
            assert trip.pod.key == B
            here.begins(trip)


@pytest.mark.parametrize("strategy", ["least-request", "prefix-cache"])
async def test_a_choice_that_the_gate_changes_has_a_reason_of_its_own_and_is_counted(
    strategy: str,
) -> None:
    async with world(decode_weight_tokens=10_000.0) as here:
        await here.learn()
        for _ in range(8):
            here.begins(await here.send("b"))
        await here.fill("a")
        asked = request(completion(PROMPT), headers={"routing-strategy": strategy})
        explained = await here.rig.decider.explain(asked)
        assert (explained["reason"], explained["candidates"][0]["pod"]) == ("overload", B)
        before = here.counted("elsewhere")
        picked = await here.rig.decider.decide(asked)
        assert isinstance(picked, Picked)
        assert picked.decision.reason == "overload"
        assert here.counted("elsewhere") == before + 1


async def test_one_pod_that_has_nothing_to_do_is_enough() -> None:
    async with world() as here:
        await here.learn()
        await here.fill("a")
        assert (await here.send()).pod.key == B


async def test_among_the_pods_that_a_client_allows_none_in_time_is_a_refusal() -> None:
    async with world() as here:
        await here.learn()
        await here.fill("a")
        with pytest.raises(Overloaded):
            await here.send("a")
        assert (await here.send("b")).pod.key == B


async def test_a_pod_without_requests_is_never_kept_from_one_whatever_the_account_says() -> None:
    async with world() as here:
        await here.learn()
        for trip in await here.fill():
            here.rig.ledger.release(trip.ticket)  # by time, say: its end was not seen
        assert await here.send()


async def test_in_shadow_mode_nobody_is_refused_and_it_is_counted() -> None:
    async with world() as here:
        await here.learn()
        here.rig.shadow = True
        await here.fill()
        assert (await here.send()).shadow
        assert (here.counted("refused"), here.counted("would_refuse")) == (0, 1)
        explained = await here.rig.decider.explain(request(completion(PROMPT)))
        assert (explained["outcome"], explained["overload"]["refuses"]) == ("picked", False)


async def test_a_gate_that_an_operator_has_opened_lets_all_through() -> None:
    async with world() as here:
        await here.learn()
        await here.fill()
        here.rig.gate_open = True
        assert await here.send()
        here.rig.gate_open = False
        with pytest.raises(Overloaded):
            await here.send()


async def test_an_answer_that_another_pod_gives_is_no_work_of_the_chosen_one() -> None:
    """A retry, or Envoy's fallback: what was booked for the chosen pod is not to be done there."""
    async with world() as here:
        await here.learn()
        for _ in range(6):
            trip = await here.send("a")
            here.rig.decider.prefill_done(trip, plain_pod("bb").address)
        explained = await here.rig.decider.explain(request(completion(PROMPT)))
        found = explained["candidates"]
        assert {one["start_delay_s"] for one in found} == {0.0}
        assert [one["prefill_tokens_per_s"] for one in found] == pytest.approx([1000.0] * 2)


@pytest.mark.parametrize(("stream", "end_seen"), [(False, True), (True, False)])
async def test_an_answer_whose_beginning_is_not_seen_teaches_nothing(
    stream: bool, end_seen: bool
) -> None:
    """Not streamed, its headers come with its end; in duplex they may not be seen at all."""
    async with world() as here:
        await here.learn()
        for _ in range(9):
            body = {**completion(PROMPT), "stream": stream}
            trip = (await here.rig.pick(body, end_seen=end_seen)).ticket
            assert isinstance(trip, Trip)
            here.now += 30.0
            here.begins(trip)
            here.rig.decider.release(trip)
        explained = await here.rig.decider.explain(request(completion(PROMPT)))
        paces = [one["prefill_tokens_per_s"] for one in explained["candidates"]]
        assert paces == pytest.approx([1000.0] * 2)


async def test_explain_says_what_each_candidate_would_take_and_whether_it_is_refused() -> None:
    async with world() as here:
        await here.learn()
        await here.fill("a")
        body = completion(PROMPT)
        page = await here.rig.decider.explain(request(body))
        found = {one["pod"]: one for one in page["candidates"]}
        assert (page["outcome"], page["overload"]["refuses"]) == ("picked", False)
        assert found[A]["start_delay_s"] == pytest.approx(3.0)
        assert found[B]["start_delay_s"] == 0.0
        assert found[A]["prefill_tokens_per_s"] == pytest.approx(1000.0)
        await here.fill("b")
        refused = here.counted("refused")
        page = await here.rig.decider.explain(request(body))
        assert (page["outcome"], page["overload"]["refuses"]) == ("refused", True)
        assert here.counted("refused") == refused


async def test_how_wrong_the_estimates_are_is_measured() -> None:
    async with world() as here:

        def at_most(seconds: str) -> float:
            return here.rig.value("aibrix_extproc_start_error_seconds_bucket", le=seconds)

        await here.learn()
        trip = await here.send("a")
        before = at_most("-5.0"), at_most("-2.0"), at_most("+Inf")
        here.now += 4.0  # it should have been one
        here.begins(trip)
        after = at_most("-5.0"), at_most("-2.0"), at_most("+Inf")
        assert after == (before[0], before[1] + 1, before[2] + 1)


async def test_refusals_are_told_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with world() as here:
        await here.learn()
        await here.fill()
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                with pytest.raises(Overloaded):
                    await here.send()
        (line,) = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
        assert line == (
            "requests for tiny are refused (no pod could begin them within 2 s "
            "(AIBRIX_EXTPROC_MAX_START_DELAY))"
        )


async def test_answers_that_begin_before_any_engine_could_are_told_and_refuse_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world() as here:
        for _ in range(5):
            here.begins(await here.send("a"))
        assert any("before their prompts can have been" in r.getMessage() for r in caplog.records)
        for _ in range(50):
            assert isinstance(await here.rig.pick(completion(PROMPT)), Picked)


async def test_a_pod_that_is_gone_leaves_no_account() -> None:
    async with world() as here:
        trip = await here.send("a")
        pace = here.rig.decider.gate._pace
        assert trip.source in pace._accounts
        here.rig.registry.remove(A)
        here.rig.decider.gate.forget(trip.source)
        assert trip.source not in pace._accounts
        here.rig.decider.release(trip)


async def test_a_pod_that_joins_gets_its_share_at_first_and_explain_shows_its_ramp() -> None:
    async with world(max_start_delay_s=0.0, ramp_s=10.0) as here:
        for _ in range(8):
            await here.send()
        here.rig.registry.upsert(plain_pod("new", labels={"is": "new"}))
        chosen = [(await here.send()).pod.key for _ in range(6)]
        own = chosen.count("default/new")
        assert own in (1, 2)
        here.now += 5.0
        page = await here.rig.decider.explain(request(completion(PROMPT)))
        found = {one["pod"]: one for one in page["candidates"]}
        assert {name: one["ramp"] for name, one in found.items()} == {
            A: 0,
            B: 0,
            "default/new": 0.5,
        }
        others = (8 + 6 - own) / 2
        assert found["default/new"]["load"]["requests"] == own + round(others / 2)
        here.now += 5.0
        page = await here.rig.decider.explain(request(completion(PROMPT)))
        assert page["candidates"][0]["pod"] == "default/new"
        assert {one["ramp"] for one in page["candidates"]} == {0}


async def test_without_a_ramp_a_pod_that_joins_gets_all_until_it_has_as_many() -> None:
    async with world(max_start_delay_s=0.0, ramp_s=0.0) as here:
        for _ in range(8):
            await here.send()
        here.rig.registry.upsert(plain_pod("new", labels={"is": "new"}))
        assert {(await here.send()).pod.key for _ in range(4)} == {"default/new"}
