"""Sends a workload: conversations at the same time, the turns of each one after another.

Owns concurrency and order. Knows neither what a result means nor how it is shown.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from aibrix_extproc.demo.workload import Conversation, messages
from aibrix_extproc.loadtest.client import ChatClient, Outcome

OnOutcome = Callable[[Outcome], None]


async def run(
    client: ChatClient,
    model: str,
    conversations: Sequence[Conversation],
    concurrency: int,
    on_outcome: OnOutcome = lambda _: None,
) -> list[Outcome]:
    """Send every turn of every conversation, at most `concurrency` at once.

    A turn waits for the answer to the one before; a failed one has an empty answer, and the
    conversation goes on. `on_outcome` is called with each result as it comes.
    """
    waiting = deque(conversations)
    outcomes: list[Outcome] = []

    async def work() -> None:
        while waiting:
            conversation = waiting.popleft()
            answers: list[str] = []
            for _ in conversation.turns:
                chat = messages(conversation, answers)
                outcome = await client.chat(model, chat, conversation.answer_tokens)
                answers.append(outcome.answer)
                outcomes.append(outcome)
                on_outcome(outcome)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(concurrency, len(waiting))):
            workers.create_task(work())
    return outcomes
