"""From the decision to the engine's scheduling: both figures, and why they differ."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from aibrix_extproc.agreement.following import (
    MAX_AGE_S,
    MAX_OPEN,
    SAMPLED_MORE,
    SETTLE_S,
    TOKENS_S,
)
from aibrix_extproc.agreement.trips import Trip
from aibrix_extproc.agreement.usage import Usage
from aibrix_extproc.extproc.decides import Picked, RouteRequest
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.kvevents.effects import ClearReason
from tests.support import eventually_async
from tests.unit.decide.decide_rig import (
    LEAST,
    LONG,
    Rig,
    ask,
    completion,
    engines,
    pod_of,
    request,
    running,
)
from tests.unit.tokenizer.tokenizer_server import TokenizerServer, tokenizer_server

PROMPT = "aibrix_extproc_scheduled_prompt_tokens_total"
HELD = "aibrix_extproc_scheduled_matched_tokens_total"
GAP = "aibrix_extproc_scheduled_gap_tokens_total"
REQUESTS = "aibrix_extproc_scheduled_requests_total"
OWN = " ".join(f"own{i}" for i in range(40))
OTHERS = " ".join(f"others{i}" for i in range(40))


class Watched:
    """A rig whose clock a test moves on, and its engines."""

    def __init__(self, rig: Rig, engines: list[FakeEngine]) -> None:
        self.rig, self.engines = rig, engines
        self.agreement = rig.decider.agreement
        self._added_s = 0.0
        usual = self.agreement._clock
        self.agreement._clock = lambda: usual() + self._added_s

    def later(self, seconds: float = SETTLE_S) -> None:
        self._added_s += seconds
        self.agreement.tick()

    async def caught_up(self) -> None:
        """Every engine's events have been applied."""
        for engine in self.engines:
            publisher = engine.ranks[0].publisher
            assert publisher is not None
            view = next(v for v in self.rig.manager.views() if v.pod.endswith(engine.config.name))
            await eventually_async(lambda p=publisher: p.sent_all)
            await eventually_async(
                lambda s=view.source, p=publisher: (
                    not p.sequence or self.rig.manager.sequence(s) == p.sequence - 1
                )
            )

    def engine_of(self, picked: Picked) -> FakeEngine:
        address = picked.decision.chosen.candidate.pod.address
        return next(engine for engine in self.engines if engine.address == address)

    async def serve(self, prompt: str, **fields: Any) -> Picked:
        picked = await self.rig.pick({**completion(prompt), **fields})
        await self.answer(picked, prompt)
        return picked

    async def answer(self, picked: Picked, prompt: str) -> None:
        engine = self.engine_of(picked)
        await ask(engine, prompt)
        await self.caught_up()
        self.begin(picked, engine)

    def begin(self, picked: Picked, engine: FakeEngine, succeeded: bool = True) -> None:
        """The answer's head comes, and its end with it."""
        self.head(picked, engine, succeeded)
        self.rig.decider.release(trip(picked))

    def head(self, picked: Picked, engine: FakeEngine, succeeded: bool = True) -> None:
        self.rig.decider.prefill_done(trip(picked), engine.address, succeeded)

    def value(self, name: str, **labels: str) -> float:
        return self.rig.value(name, **labels)

    def figures(self) -> tuple[float, float]:
        """Tokens matched at the decision and held at scheduling, of all that were followed."""
        held = self.value(HELD, model="tiny")
        gaps = self.rig.metrics.scheduled_gap_tokens.collect()
        total = sum(
            sample.value * (1 if sample.labels["direction"] == "more" else -1)
            for metric in gaps
            for sample in metric.samples
            if sample.name == GAP
        )
        return held - total, held

    def gap(self, cause: str, direction: str) -> float:
        return self.value(GAP, model="tiny", cause=cause, direction=direction)


def trip(picked: Picked) -> Trip:
    assert isinstance(picked.ticket, Trip)
    return picked.ticket


@contextlib.asynccontextmanager
async def watched(count: int = 1, **settings: Any) -> AsyncIterator[Watched]:
    async with (
        engines(count) as started,
        running([pod_of(e) for e in started], kv_event_sync=True, **settings) as rig,
    ):
        await eventually_async(rig.manager.synced)
        yield Watched(rig, started)


async def test_a_new_prompt_has_nothing_though_its_blocks_are_in_the_index_by_then() -> None:
    async with watched() as seen:
        picked = await seen.serve(LONG)
        seen.later()
        assert seen.value(REQUESTS, result="known") == 1
        assert seen.value(PROMPT, model="tiny") == picked.prompt_tokens
        assert seen.figures() == (0, 0)
        again = await seen.serve(LONG)
        seen.later()
        assert seen.figures() == (again.matched_tokens, again.matched_tokens)
        assert again.matched_tokens > 256


async def test_nothing_is_settled_before_its_events_can_have_come() -> None:
    async with watched() as seen:
        await seen.serve(LONG)
        seen.later(SETTLE_S / 2)
        assert seen.value(REQUESTS, result="known") == 0
        assert seen.value("aibrix_extproc_scheduled_followed") == 1
        seen.later(SETTLE_S / 2)
        assert seen.value(REQUESTS, result="known") == 1
        assert seen.value("aibrix_extproc_scheduled_followed") == 0


async def test_blocks_evicted_between_decision_and_scheduling_are_told_by_that_cause() -> None:
    small = EngineConfig(name="e0", num_blocks=60)
    async with (
        FakeEngine(small) as engine,
        running([pod_of(engine)], kv_event_sync=True) as rig,
    ):
        await eventually_async(rig.manager.synced)
        seen = Watched(rig, [engine])
        await seen.serve(LONG)
        seen.later()
        picked = await rig.pick(completion(LONG))
        assert picked.matched_tokens > 256
        await ask(engine, f"others {LONG}")  # somebody passed by, and was first
        await seen.answer(picked, LONG)
        seen.later()
        decided, held = seen.figures()
        assert (decided, seen.gap("evicted", "less")) == (picked.matched_tokens, decided - held)
        assert held < decided / 2


async def test_blocks_that_came_between_decision_and_scheduling_are_told_by_that_cause() -> None:
    async with watched() as seen:
        picked = await seen.rig.pick(completion(f"{LONG} {OWN}"))
        await ask(seen.engines[0], f"{LONG} {OTHERS}")  # somebody passed by
        await seen.answer(picked, f"{LONG} {OWN}")
        seen.later()
        assert picked.matched_tokens == 0
        assert seen.gap("arrived", "more") > 256
        assert seen.figures() == (0, seen.gap("arrived", "more"))


async def test_what_another_pod_serves_counts_by_what_that_pod_was_known_to_hold() -> None:
    async with watched(2) as seen:
        first = await seen.serve(LONG)
        seen.later()
        picked = await seen.rig.pick(completion(LONG))
        holder = seen.engine_of(first)
        assert seen.engine_of(picked) is holder
        other = next(engine for engine in seen.engines if engine is not holder)
        await ask(other, LONG)
        await seen.caught_up()
        seen.begin(picked, other)
        seen.later()
        assert seen.gap("other_pod", "less") == picked.matched_tokens
        assert seen.figures() == (picked.matched_tokens, 0)


async def test_a_source_that_was_emptied_meanwhile_is_told_by_that_cause() -> None:
    async with watched() as seen:
        await seen.serve(LONG)
        seen.later()
        picked = await seen.rig.pick(completion(LONG))
        (view,) = seen.rig.manager.views()
        before = seen.value("aibrix_kv_source_clears_total", reason="inflated")
        feed = seen.rig.manager._subscriber
        assert feed is not None
        feed.discard(view.source, ClearReason.INFLATED)
        await eventually_async(
            lambda: seen.value("aibrix_kv_source_clears_total", reason="inflated") > before
        )
        await seen.answer(picked, LONG)
        seen.later()
        assert seen.gap("out_of_step", "less") == picked.matched_tokens


async def test_a_request_that_was_not_served_is_counted_and_has_no_figures() -> None:
    async with watched() as seen:
        failed = await seen.rig.pick(completion(LONG))
        seen.begin(failed, seen.engines[0], succeeded=False)
        left = await seen.rig.pick(completion(f"left {LONG}"))
        seen.rig.decider.release(trip(left))
        unseen = await seen.rig.pick(completion(f"unseen {LONG}"))
        stranger = await seen.rig.pick(completion(f"stranger {LONG}"))
        seen.rig.decider.prefill_done(trip(stranger), "10.0.0.9:1", True)
        seen.later()
        assert seen.value(REQUESTS, result="not_served") == 3
        seen.later(MAX_AGE_S)
        assert seen.value(REQUESTS, result="not_served") == 4
        assert seen.value(PROMPT, model="tiny") == 0
        assert trip(unseen).follow is None


async def test_a_head_that_comes_before_the_prompts_turn_settles_nothing() -> None:
    small = EngineConfig(name="e0", num_blocks=60)
    async with (
        FakeEngine(small) as engine,
        running([pod_of(engine)], kv_event_sync=True) as rig,
    ):
        await eventually_async(rig.manager.synced)
        seen = Watched(rig, [engine])
        await seen.serve(LONG)
        seen.later()
        picked = await rig.pick(completion(f"{LONG} {OWN}"))
        seen.head(picked, engine)
        seen.later()
        assert seen.value(REQUESTS, result="known") == 1
        await ask(engine, f"others {LONG}")  # its blocks go while it waits
        reused = await ask(engine, f"{LONG} {OWN}")
        await seen.caught_up()
        seen.later()
        assert seen.value(REQUESTS, result="known") == 2
        assert seen.figures() == (picked.matched_tokens, reused)
        assert reused < picked.matched_tokens


async def test_a_prompt_held_whole_is_settled_by_the_end_of_its_answer() -> None:
    async with watched() as seen:
        await seen.serve(LONG)
        picked = await seen.rig.pick(completion(LONG))
        await ask(seen.engines[0], LONG)
        await seen.caught_up()
        seen.head(picked, seen.engines[0])
        seen.later()
        assert seen.value(REQUESTS, result="known") == 1
        seen.rig.decider.release(trip(picked))
        seen.later()
        assert seen.value(REQUESTS, result="known") == 2


async def test_an_answer_that_ends_before_its_prompts_turn_has_no_figures() -> None:
    async with watched() as seen:
        picked = await seen.rig.pick(completion(LONG))
        seen.begin(picked, seen.engines[0])
        seen.later(SETTLE_S / 2)
        assert seen.value(REQUESTS, result="unannounced") == 0
        seen.later()
        assert seen.value(REQUESTS, result="unannounced") == 1
        assert seen.value(PROMPT, model="tiny") == 0


async def test_only_so_many_are_followed_and_sampled_ones_first() -> None:
    async with watched(usage_sample=0.0) as seen:
        for number in range(MAX_OPEN):
            await seen.rig.pick(completion(f"{number} {LONG}"))
        assert seen.value("aibrix_extproc_scheduled_followed") == MAX_OPEN - SAMPLED_MORE
        seen.agreement._sampling._share = 1.0
        for number in range(SAMPLED_MORE + 1):
            await seen.rig.pick(completion(f"sampled {number} {LONG}"))
        assert seen.value("aibrix_extproc_scheduled_followed") == MAX_OPEN


async def test_without_tokens_and_in_shadow_mode_nobody_is_followed() -> None:
    async with watched() as seen:
        await seen.rig.pick({"model": "tiny", "prompt": LONG}, headers=LEAST)
        seen.rig.shadow = True
        await seen.rig.pick(completion(LONG))
        assert seen.value("aibrix_extproc_scheduled_followed") == 0


async def test_a_sample_has_all_three_figures_whether_its_answer_ends_soon_or_late() -> None:
    async with watched(usage_sample=1.0) as seen:
        soon = await seen.serve(LONG)
        seen.rig.decider.observed(trip(soon), Usage(soon.prompt_tokens, 0))
        seen.later()
        late = await seen.serve(LONG)
        seen.later()
        seen.rig.decider.observed(trip(late), Usage(late.prompt_tokens, late.matched_tokens))
        page = seen.agreement.page()
        newest, first = page["samples"]
        assert (first["matched_tokens"], first["scheduled_tokens"], first["cached_tokens"]) == (
            0,
            0,
            0,
        )
        assert newest["scheduled_tokens"] == newest["cached_tokens"] == late.matched_tokens
        assert page["samples_by_cause"]["none"]["requests"] == 2
        totals = page["scheduling"]["tiny"]
        assert totals["requests"] == 2
        assert totals["share_at_decision"] == totals["share_at_scheduling"] > 0.4


# -- decided by a prefix ------------------------------------------------------------------------

LATER = "aibrix_extproc_tokenized_later_total"
WORDS = "a long text of which much can be known " * 10


class Talk:
    """A conversation with one engine by way of a processor, turn by turn."""

    def __init__(self, seen: Watched, name: str) -> None:
        self.seen, self.name = seen, name
        self.messages: list[dict[str, str]] = []

    def say(self) -> RouteRequest:
        """The next turn."""
        self.messages.append(
            {"role": "user", "content": f"{WORDS} {self.name} {len(self.messages)}"}
        )
        return request(self.body, "/v1/chat/completions")

    @property
    def body(self) -> dict[str, Any]:
        return {"model": "tiny", "messages": self.messages, "max_tokens": 40}

    async def decide(self) -> Picked:
        picked = await self.seen.rig.decider.decide(self.say())
        assert isinstance(picked, Picked)
        return picked

    async def answer(self) -> int:
        """The engine's answer; how many tokens of the prompt it reused."""
        url = f"http://{self.seen.engines[0].address}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=self.body) as reply:
            answer = await reply.json()
        self.messages.append(answer["choices"][0]["message"])
        await self.seen.caught_up()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    async def turn(self) -> None:
        picked = await self.decide()
        rig = self.seen.rig
        await eventually_async(lambda: rig.value(LATER, result="done") == at_once(rig))
        await self.answer()
        self.seen.begin(picked, self.seen.engines[0])
        self.seen.later()


def at_once(rig: Rig) -> float:
    return rig.value("aibrix_extproc_token_prefix_total", result="enough")


@contextlib.asynccontextmanager
async def known_prefix() -> AsyncIterator[tuple[Watched, Talk, TokenizerServer]]:
    """An engine, a tokenizer in front of its own that a test can stop, and a conversation of which
    the next turn is decided by the turns before it."""
    async with (
        FakeEngine(EngineConfig(name="e0")) as engine,
        tokenizer_server("tiny") as server,
        aiohttp.ClientSession() as session,
        running(
            [pod_of(engine)],
            kv_event_sync=True,
            tokenizer_endpoint=f"http://{server.address}",
            tokenizer_render=False,
        ) as rig,
    ):

        async def tokenize(asked: web.Request) -> web.Response:
            url = f"http://{engine.address}/tokenize"
            async with session.post(url, json=await asked.json()) as reply:
                return web.Response(body=await reply.read(), content_type="application/json")

        server.tokenize = tokenize
        await eventually_async(rig.manager.synced)
        seen = Watched(rig, [engine])
        for name in ("ann", "bob", "cid"):
            talk = Talk(seen, name)
            for _ in range(3):
                await talk.turn()
        assert at_once(rig) > 0
        yield seen, talk, server


async def test_the_tail_of_a_prompt_decided_by_its_prefix_is_told_by_that_cause() -> None:
    async with known_prefix() as (seen, talk, _):
        decided, held = seen.figures()
        tail = seen.gap("tail", "more")
        picked = await talk.decide()
        await eventually_async(lambda: seen.value(LATER, result="done") == at_once(seen.rig))
        reused = await talk.answer()
        seen.begin(picked, seen.engines[0])
        seen.later()
        assert 0 < picked.matched_tokens < reused
        now_decided, now_held = seen.figures()
        assert (now_decided - decided, now_held - held) == (picked.matched_tokens, reused)
        assert seen.gap("tail", "more") - tail == reused - picked.matched_tokens


async def test_tokens_known_after_the_engine_has_computed_them_show_no_block_of_its_own() -> None:
    async with known_prefix() as (seen, talk, server):
        _, held = seen.figures()
        server.gate.clear()
        picked = await talk.decide()
        reused = await talk.answer()
        seen.begin(picked, seen.engines[0])
        seen.later()
        assert seen.figures()[1] == held
        server.gate.set()
        await eventually_async(lambda: seen.value(LATER, result="done") == at_once(seen.rig))
        seen.later(0)
        (source,) = [view.source for view in seen.rig.manager.views()]
        ids = await whole(seen, talk)
        assert seen.rig.index.match("tiny", ids)[source] * 16 > reused
        assert seen.figures()[1] - held == reused


async def whole(seen: Watched, talk: Talk) -> list[int]:
    url = f"http://{seen.engines[0].address}/tokenize"
    body = {"model": "tiny", "messages": talk.messages[:-1]}
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
        found: list[int] = (await reply.json())["tokens"]
        return found


async def test_tokens_that_never_become_known_are_counted_and_give_no_figures() -> None:
    async with known_prefix() as (seen, talk, server):
        before = seen.figures()
        server.gate.clear()
        picked = await talk.decide()
        seen.begin(picked, seen.engines[0])
        seen.later()
        assert seen.value(REQUESTS, result="no_tokens") == 0
        seen.later(TOKENS_S)
        assert seen.value(REQUESTS, result="no_tokens") == 1
        server.gate.set()
        await eventually_async(lambda: seen.value(LATER, result="done") == at_once(seen.rig))
        seen.later()
        assert seen.figures() == before


async def test_what_a_request_promises_itself_or_a_later_one_does_is_not_held() -> None:
    async with known_prefix() as (seen, talk, _):
        rig = seen.rig
        (view,) = rig.manager.views()
        # As of a pod without events: predictions are all that is known.
        await asyncio.to_thread(rig.manager.close)
        await asyncio.to_thread(rig.index.clear_source, view.source)
        rig.predictions.drop(view.source)
        _, held = seen.figures()
        picked = await talk.decide()
        assert picked.matched_tokens == 0
        assert len(rig.predictions) > 0
        await eventually_async(lambda: rig.value(LATER, result="done") == at_once(rig))
        seen.begin(picked, seen.engines[0])
        seen.later()
        assert seen.figures()[1] == held
        again = await rig.decider.decide(request(talk.body, "/v1/chat/completions"))
        assert isinstance(again, Picked)
        seen.begin(again, seen.engines[0])
        seen.later()
        assert seen.figures()[1] - held == again.matched_tokens > 256
