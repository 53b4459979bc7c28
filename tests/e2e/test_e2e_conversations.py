"""Ten-turn conversations with known prefixes on: decided at once, and as well as by all tokens."""

from typing import Any

from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import MATCHED, caught_up, counted, explain, text

TURNS = 10
NAMES = ("bob", "cid")
ENOUGH = "aibrix_extproc_token_prefix_total"


async def converse(stack: Stack, name: str) -> None:
    """Every turn goes to the pod of the first, and no more is promised than is reused."""
    messages: list[dict[str, Any]] = []
    pods = set()
    for turn in range(TURNS):
        messages.append({"role": "user", "content": f"{text(name, 40)} {turn} {name}{turn}"})
        reply = await stack.chat(messages, max_tokens=24)
        assert reply.status == 200
        assert int(reply.headers[MATCHED]) <= reply.cached_tokens
        pods.add(reply.pod)
        messages.append(reply.json()["choices"][0]["message"])
        await caught_up(stack)
    assert len(pods) == 1
    assert reply.cached_tokens > 300


async def test_most_turns_do_not_wait_for_the_tokenizer_and_stay_on_their_pod() -> None:
    environment = {"AIBRIX_EXTPROC_CONVERSATION_CACHE": "true"}
    async with gateway(engines=2, environment=environment) as stack:
        await converse(stack, "ann")  # the template is new: her first turns are its proofs
        before = await counted(stack, ENOUGH, result="enough")
        for name in NAMES:
            await converse(stack, name)
        at_once = await counted(stack, ENOUGH, result="enough") - before
        assert at_once >= 0.8 * TURNS * len(NAMES)
        assert await counted(stack, "aibrix_extproc_token_prefix_wrong_total") == 0
        assert await counted(stack, "aibrix_extproc_tokenized_later_total", result="dropped") == 0


async def test_explain_tells_tokens_from_a_prefix_of_them() -> None:
    environment = {"AIBRIX_EXTPROC_CONVERSATION_CACHE": "true"}
    async with gateway(engines=1, environment=environment) as stack:
        for name in "abcd":
            await stack.complete(text(name, 100))
            await stack.complete(f"{text(name, 100)} and more")
        assert (await explain(stack, f"{text('d', 100)} and more"))["tokens_known"] is True
        longer = f"{text('d', 100)} and more of it"
        assert (await explain(stack, longer))["tokens_known"] == "prefix"
