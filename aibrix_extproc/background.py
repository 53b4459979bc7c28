"""Tasks that run beside everything else until they are ended. Knows none of them."""

import asyncio
import contextlib


async def end(*tasks: "asyncio.Task[None] | None") -> None:
    """Cancel tasks, one after another, and wait for each. None: it was never started."""
    for task in tasks:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
