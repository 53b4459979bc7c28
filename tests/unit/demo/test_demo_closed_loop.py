"""The order of requests: turns one after another, conversations at once."""

import asyncio
from typing import Any

from aibrix_extproc.demo import closed_loop
from aibrix_extproc.demo.workload import Conversation
from aibrix_extproc.loadtest.client import Outcome


class ScriptedClient:
    """Answers `answer to <last message>`; keeps what was sent and how much was under way."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.sent: list[list[str]] = []
        self.under_way = self.most_under_way = 0

    async def chat(self, _: str, messages: list[dict[str, str]], __: int) -> Outcome:
        self.sent.append([message["content"] for message in messages])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        last = messages[-1]["content"]
        if last == self.failing:
            return Outcome(error="HTTP 500")
        return Outcome(answer=f"answer to {last}")


async def send(client: Any, conversations: list[Conversation], concurrency: int) -> list[Outcome]:
    return await closed_loop.run(client, "m", conversations, concurrency)


def chat(name: str, turns: int) -> Conversation:
    return Conversation("s", tuple(f"{name}{n}" for n in range(turns)), 8)


async def test_a_turn_waits_for_the_answer_before_it() -> None:
    client = ScriptedClient()
    await send(client, [chat("a", 3)], 5)
    assert client.sent[2] == ["s", "a0", "answer to a0", "a1", "answer to a1", "a2"]


async def test_every_turn_of_every_conversation_is_sent_once() -> None:
    client = ScriptedClient()
    outcomes = await send(client, [chat(name, 4) for name in "abcdefg"], 3)
    assert len(outcomes) == 28
    assert len({tuple(sent) for sent in client.sent}) == 28


async def test_no_more_are_under_way_than_asked_for() -> None:
    client = ScriptedClient()
    await send(client, [chat(name, 4) for name in "abcdefg"], 3)
    assert client.most_under_way == 3


async def test_a_failed_turn_does_not_end_its_conversation() -> None:
    client = ScriptedClient(failing="a0")
    outcomes = await send(client, [chat("a", 2)], 1)
    assert [outcome.error for outcome in outcomes] == ["HTTP 500", None]
    assert client.sent[1] == ["s", "a0", "", "a1"]


async def test_each_outcome_is_told_as_it_comes() -> None:
    told: list[Outcome] = []
    client: Any = ScriptedClient()
    outcomes = await closed_loop.run(client, "m", [chat("a", 2)], 1, told.append)
    assert told == outcomes
