"""`/debug/decisions`: what was decided for which request, the newest first.

Owns the route and its query. The records are those of `decisions`.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import web

from aibrix_extproc.admin.http import json_reply
from aibrix_extproc.decisions import DecisionRing
from aibrix_extproc.decisions.record import rendered
from aibrix_extproc.errors import BadBody, printable

DEFAULT_LIMIT: Final = 20
LARGEST_LIMIT: Final = 1_000
_QUERY: Final = frozenset(("request_id", "limit"))


class DecisionPages:
    """One page over the ring."""

    def __init__(self, ring: DecisionRing) -> None:
        self._ring = ring

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/debug/decisions", self._decisions)]

    async def _decisions(self, request: web.Request) -> web.Response:
        unknown = sorted(request.query.keys() - _QUERY)
        if unknown:
            raise BadBody(
                f"There is no query field '{printable(unknown[0])}': use request_id and limit.",
                param=printable(unknown[0]),
            )
        limit = _limit(request.query.get("limit", str(DEFAULT_LIMIT)))
        records = self._ring.newest_first(limit, request.query.get("request_id"))
        return json_reply([rendered(record) for record in records])


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LARGEST_LIMIT):
        raise BadBody(f"limit: write a number from 1 to {LARGEST_LIMIT}.", param="limit")
    return int(text[:9])
