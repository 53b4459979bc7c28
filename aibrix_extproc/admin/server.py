"""The admin port: health, metrics and models over HTTP.

Owns its routes. What the pages say is in `pages` and `scrape`. It has no authentication, tells
nothing of what is cached and changes nothing: probes and Prometheus reach it from anywhere. What
shows or does more is on the debug port (`debug`).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web

from aibrix_extproc.admin.http import HttpPort, errors_as_json, json_reply
from aibrix_extproc.admin.pages import error_page, readiness_page
from aibrix_extproc.admin.scrape import CONTENT_TYPE, HasStats, Scrape
from aibrix_extproc.discovery.models_page import models_page
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings


class HasModelNames(Protocol):
    """The registry, as far as this server sees it."""

    def model_names(self) -> tuple[str, ...]: ...


class AdminServer:
    """Serves `settings.admin_address` from `start` to `close`, on the caller's event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: HasModelNames,
        index: HasStats,
        readiness: Callable[[], Mapping[str, bool]],
        index_backend: str,
    ) -> None:
        """`readiness`: what must hold before traffic comes, by name; asked at each `/readyz`.
        `index_backend`: which implementation of the index serves, for the same page."""
        self._settings = settings
        self._registry = registry
        self._readiness = readiness
        self._index_backend = index_backend
        self._scrape = Scrape(metrics, index)
        self._scraping = asyncio.Lock()
        self._http = HttpPort(
            "AIBRIX_EXTPROC_ADMIN_ADDRESS", settings.admin_address, self._application()
        )

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

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[errors_as_json])
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.route("*", "/debug/{page:.*}", self._moved),
            ]
        )
        return application

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        status, page = readiness_page(self._readiness(), self._index_backend)
        return json_reply(page, status)

    async def _metrics(self, request: web.Request) -> web.Response:
        """In a thread: a large page must not hold up decisions. One at a time."""
        self._registry.model_names()  # so that the series of models that went are gone
        async with self._scraping:
            text = await asyncio.to_thread(self._scrape.text)
        return web.Response(body=text, headers={"content-type": CONTENT_TYPE})

    async def _models(self, request: web.Request) -> web.Response:
        return json_reply(models_page(self._registry.model_names()))

    async def _moved(self, request: web.Request) -> web.Response:
        """Where the debug pages are, for who looks for them here."""
        message = (
            f"Debug pages are on AIBRIX_EXTPROC_DEBUG_ADDRESS ({self._settings.debug_address}); "
            "its default answers this machine or pod alone."
        )
        return json_reply(error_page(message, "not_served_here", "invalid_request_error"), 404)
