"""What one decision may cost: tokens that are matched, requests in the ledger."""

from tests.support import eventually_async
from tests.unit.decide.decide_rig import LONG, completion, engines, pod_of, running

IDS = list(range(1, 1001))


async def test_of_a_long_prompt_the_leading_tokens_are_matched_and_all_count_as_length() -> None:
    async with engines(1) as (a,), running([pod_of(a)], max_prompt_tokens=160) as rig:
        body = completion("") | {"prompt": IDS}
        first, again = [await rig.pick(body) for _ in range(2)]
        assert first.prompt_tokens == again.prompt_tokens == 1000
        assert again.matched_tokens == 160
        assert len(rig.predictions) == 10
        assert rig.value("aibrix_extproc_prompts_cut_total") == 2


async def test_what_is_tokenized_later_is_promised_up_to_the_bound() -> None:
    async with engines(1) as (a,), running([pod_of(a)], max_prompt_tokens=160) as rig:
        await rig.pick(completion(LONG))
        await eventually_async(lambda: len(rig.predictions) == 10)


async def test_a_short_prompt_is_not_cut() -> None:
    async with engines(1) as (a,), running([pod_of(a)], max_prompt_tokens=1000) as rig:
        await rig.pick(completion("") | {"prompt": IDS})
        assert rig.value("aibrix_extproc_prompts_cut_total") == 0


async def test_past_the_bound_of_reservations_the_first_to_leave_goes_and_is_counted() -> None:
    async with engines(1) as (a,), running([pod_of(a)]) as rig:
        rig.ledger._max_open = 2
        tickets = [(await rig.pick(completion(LONG))).ticket for _ in range(4)]
        assert len(rig.ledger) == 2
        assert rig.value("aibrix_extproc_reservations_dropped_total") == 2
        for ticket in tickets:  # those that went may be given back all the same
            rig.decider.release(ticket)
        assert len(rig.ledger) == 0
