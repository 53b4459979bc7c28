"""The peers' port: `/snapshot` for replicas that start, and nothing else, over HTTP.

Owns the port. The debug port has the same page, but whoever reaches that can pull levers and read
what is cached: it stays on the loopback while this one is open to the other replicas. Off unless
`AIBRIX_EXTPROC_PEER_ADDRESS` is set.
"""

from aiohttp import web

from aibrix_extproc.admin.guard import guard
from aibrix_extproc.admin.http import HttpPort, errors_as_json
from aibrix_extproc.admin.snapshot_page import SnapshotPage
from aibrix_extproc.settings import Settings


class PeerServer:
    """Serves `settings.peer_address` from `start` to `close`, on the caller's event loop."""

    def __init__(self, settings: Settings, page: SnapshotPage) -> None:
        """`page` may be served by another port too: it still sends one snapshot at a time."""
        application = web.Application(middlewares=[guard(settings.debug_hosts), errors_as_json])
        application.add_routes(page.routes())
        self._http = HttpPort("AIBRIX_EXTPROC_PEER_ADDRESS", settings.peer_address, application)
        self._on = bool(settings.peer_address)

    async def start(self) -> None:
        """Listen, where an address is set. Raises SettingsError where it cannot be used."""
        if self._on:
            await self._http.start()

    async def close(self) -> None:
        """Stop listening; requests under way get a second. Harmless when called again."""
        await self._http.close()

    @property
    def port(self) -> int:
        """The port that is listened on. RuntimeError where none is."""
        return self._http.port
