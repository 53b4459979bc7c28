"""Debug pages that look and change nothing: each source's state, and how a request would go.

Owns their routes. How a decision is made it does not know.
"""

import uuid
from collections.abc import Sequence
from typing import Any, Final, Protocol

from aiohttp import web

from aibrix_extproc.admin.http import json_reply, read_body
from aibrix_extproc.admin.pages import sources_page
from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.kvevents.manager import SourceView

EXPLAINED_PATH: Final = "/v1/chat/completions"
"""The path of an explained request whose query has no `path`."""

_EXPLAINED_HEADERS: Final = ("routing-strategy", "external-filter", "x-session-id")


class HasViews(Protocol):
    """The source manager, as far as these pages see it."""

    def views(self) -> Sequence[SourceView]: ...


class Explains(Protocol):
    """Says how a request would be decided, without a reservation and without counting it."""

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """Plain JSON values. Raises RequestError where the client would be told an error."""
        ...


class InsightPages:
    """`/debug/sources` and `/debug/explain`."""

    def __init__(self, manager: HasViews, explains: Explains, limit_bytes: int) -> None:
        """`limit_bytes`: of a body to explain."""
        self._manager = manager
        self._explains = explains
        self._limit_bytes = limit_bytes

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/debug/sources", self._sources),
            web.post("/debug/explain", self._explain),
        ]

    async def _sources(self, request: web.Request) -> web.Response:
        return json_reply(sources_page(self._manager.views()))

    async def _explain(self, request: web.Request) -> web.Response:
        """Headers that choose count here even where clients are not trusted: operators are."""
        body = await read_body(request, self._limit_bytes)
        headers = {name: request.headers.get(name, "") for name in _EXPLAINED_HEADERS}
        explained = await self._explains.explain(
            RouteRequest(
                method="POST",
                path=request.query.get("path", EXPLAINED_PATH),
                headers={name: value for name, value in headers.items() if value},
                body=body,
                request_id=f"explain-{uuid.uuid4()}",
            )
        )
        return json_reply(explained)
