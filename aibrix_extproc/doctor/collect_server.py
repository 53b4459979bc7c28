"""What a running processor says of itself, on its admin and its debug port.

Owns which pages are read. What they mean is for `check_server`.
"""

import asyncio

from aibrix_extproc.doctor.calls import Caller
from aibrix_extproc.doctor.facts import Answer, ServerFacts


async def read_server(caller: Caller, admin_url: str, debug_url: str) -> ServerFacts:
    """The pages of both; an empty URL is not asked."""

    async def page(url: str, path: str) -> Answer | None:
        return await caller.get(f"{url}{path}") if url else None

    pages = await asyncio.gather(
        *(page(admin_url, path) for path in ("/readyz", "/metrics", "/v1/models")),
        *(
            page(debug_url, path)
            for path in ("/debug/sources", "/debug/agreement", "/debug/levers")
        ),
    )
    return ServerFacts(*pages)
