"""The admin port: health, metrics, models and debug pages over HTTP.

Owns the routes and the life of the server. What the pages say is in `pages` and `scrape`; how a
decision is made it does not know. The port has no authentication, and `/debug/explain` shows
what is cached: it is for operators and must not be reachable by clients.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from aiohttp import web

from aibrix_extproc.admin.pages import error_page, readiness_page, sources_page
from aibrix_extproc.admin.scrape import CONTENT_TYPE, HasStats, Scrape
from aibrix_extproc.discovery.models_page import models_page
from aibrix_extproc.errors import BadBody, BodyTooLarge, RequestError, SettingsError
from aibrix_extproc.extproc.decides import RouteRequest
from aibrix_extproc.extproc.replies import error_body
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

log = logging.getLogger(__name__)

EXPLAINED_PATH: Final = "/v1/chat/completions"
"""The path of an explained request whose query has no `path`."""

_EXPLAINED_HEADERS: Final = ("routing-strategy", "external-filter")
_SHUTDOWN_S: Final = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HasModelNames(Protocol):
    """The registry, as far as this server sees it."""

    def model_names(self) -> tuple[str, ...]: ...


class HasViews(Protocol):
    """The source manager, as far as this server sees it."""

    def views(self) -> Sequence[SourceView]: ...


class Explains(Protocol):
    """Says how a request would be decided, without a reservation and without counting it."""

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """Plain JSON values. Raises RequestError where the client would be told an error."""
        ...


class AdminServer:
    """Serves `settings.admin_address` from `start` to `close`, on the caller's event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: HasModelNames,
        manager: HasViews,
        index: HasStats,
        explains: Explains,
        readiness: Callable[[], Mapping[str, bool]],
        index_backend: str,
    ) -> None:
        """`readiness`: what must hold before traffic comes, by name; asked at each `/readyz`.
        `index_backend`: which implementation of the index serves, for the same page."""
        self._settings = settings
        self._registry = registry
        self._manager = manager
        self._explains = explains
        self._readiness = readiness
        self._index_backend = index_backend
        self._scrape = Scrape(metrics, index)
        self._scraping = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be used."""
        runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=_SHUTDOWN_S, handle_signals=False
        )
        await runner.setup()
        host, _, port = self._settings.admin_address.rpartition(":")
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"AIBRIX_EXTPROC_ADMIN_ADDRESS: cannot listen on {self._settings.admin_address}: "
                f"{error.strerror or error}"
            ) from None
        self._runner = runner

    async def close(self) -> None:
        """Stop listening; requests under way get a second. Harmless when called again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def port(self) -> int:
        """The port that is listened on, also where the address says 0. RuntimeError before."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("the admin server is not started")
        return int(self._runner.addresses[0][1])

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[_errors_as_json],
            # One more: some versions of aiohttp refuse a body of just this size.
            client_max_size=self._settings.max_body_bytes + 1,
        )
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.get("/debug/sources", self._sources),
                web.post("/debug/explain", self._explain),
            ]
        )
        return application

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        status, page = readiness_page(self._readiness(), self._index_backend)
        return _json(page, status)

    async def _metrics(self, request: web.Request) -> web.Response:
        """In a thread: a large page must not hold up decisions. One at a time."""
        async with self._scraping:
            text = await asyncio.to_thread(self._scrape.text)
        return web.Response(body=text, headers={"content-type": CONTENT_TYPE})

    async def _models(self, request: web.Request) -> web.Response:
        return _json(models_page(self._registry.model_names()))

    async def _sources(self, request: web.Request) -> web.Response:
        return _json(sources_page(self._manager.views()))

    async def _explain(self, request: web.Request) -> web.Response:
        """Headers that choose count here even where clients are not trusted: operators are."""
        body = await self._body(request)
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
        return _json(explained)

    async def _body(self, request: web.Request) -> bytes:
        limit_bytes = self._settings.max_body_bytes
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise BodyTooLarge(limit_bytes) from None
        except web.RequestPayloadError:
            raise BadBody(
                "The body cannot be decoded. Send it whole, and as its Content-Encoding says."
            ) from None
        if len(body) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        return body


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's shape; what nobody expected is a 500 and a line in the log."""
    try:
        return await handler(request)
    except RequestError as error:
        return web.Response(
            status=error.status,
            body=error_body(error),
            headers={"content-type": "application/json", **error.headers},
        )
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        page = error_page(_what_to_do(request, error), "not_served_here", "invalid_request_error")
        return _json(page, error.status, allow)
    except ConnectionResetError:
        raise  # the one who asked has left
    except Exception:  # the port must answer whatever a page does
        log.exception("%s failed", request.path)
        page = error_page("This page failed; the log says why.", "internal_error", "server_error")
        return _json(page, 500)


def _what_to_do(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"Use {' or '.join(sorted(error.allowed_methods))} on this path."
    paths = sorted(
        resource.canonical for resource in request.app.router.resources() if resource.canonical
    )
    return f"There is no such page. There are: {', '.join(paths)}."


def _json(
    page: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.json_response(page, status=status, headers=headers, dumps=_dumps)


def _dumps(page: object) -> str:
    return json.dumps(page, indent=2) + "\n"
