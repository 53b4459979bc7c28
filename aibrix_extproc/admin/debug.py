"""The debug port: what shows or changes more than a stranger may see, over HTTP.

Owns the port and its guards; each group of pages brings its routes. It has no authentication:
who reaches it may see what is cached and pull levers, so it is bound to the loopback unless told
otherwise.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from aiohttp import web

from aibrix_extproc.admin.guard import guard
from aibrix_extproc.admin.http import HttpPort, errors_as_json
from aibrix_extproc.settings import Settings


class Pages(Protocol):
    """A group of pages."""

    def routes(self) -> Sequence[web.RouteDef]: ...


class DebugServer:
    """Serves `settings.debug_address` from `start` to `close`, on the caller's event loop."""

    def __init__(self, settings: Settings, groups: Iterable[Pages]) -> None:
        application = web.Application(
            middlewares=[guard(settings.debug_hosts), errors_as_json],
            # One more than a body may have: see `http.read_body`.
            client_max_size=settings.max_body_bytes + 1,
        )
        for group in groups:
            application.add_routes(group.routes())
        self._http = HttpPort("AIBRIX_EXTPROC_DEBUG_ADDRESS", settings.debug_address, application)

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be used."""
        await self._http.start()

    async def close(self) -> None:
        """Stop listening; requests under way get a second. Harmless when called again."""
        await self._http.close()

    @property
    def port(self) -> int:
        """The port that is listened on, also where the address says 0. RuntimeError before."""
        return self._http.port
