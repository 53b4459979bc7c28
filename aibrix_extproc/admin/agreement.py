"""The debug page on whether engines do what is believed of them.

Owns its route. What it shows is the room's: no prompt and no token id is among it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from aiohttp import web

from aibrix_extproc.admin.http import json_reply


class HasPage(Protocol):
    """The agreement room, as far as this page sees it."""

    def page(self) -> dict[str, Any]: ...


class AgreementPages:
    """`/debug/agreement`."""

    def __init__(self, agreement: HasPage) -> None:
        self._agreement = agreement

    def routes(self) -> Sequence[web.RouteDef]:
        return [web.get("/debug/agreement", self._page)]

    async def _page(self, request: web.Request) -> web.Response:
        return json_reply(self._agreement.page())
