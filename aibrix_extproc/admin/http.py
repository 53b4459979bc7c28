"""What both HTTP ports share: listening, JSON replies, errors as JSON, bounded bodies.

Owns no route: each port brings its own. Errors of a request are shaped by `extproc.replies`, as
they are towards Envoy.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from aiohttp import web

from aibrix_extproc.admin.pages import error_page
from aibrix_extproc.errors import BadBody, BodyTooLarge, RequestError, SettingsError
from aibrix_extproc.extproc.replies import error_body

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_CONNECTIONS: Final = 256
"""Of one port. At the limit the oldest is closed for a new one, so that who holds connections open
cannot keep a probe away."""

_SHUTDOWN_S: Final = 1.0
_BACKLOG: Final = 128


class HttpPort:
    """One listening port, from `start` to `close`, on the caller's event loop."""

    def __init__(self, variable: str, address: str, application: web.Application) -> None:
        """`variable`: the setting that gave `address` (`host:port`), for its error."""
        self._variable = variable
        self._address = address
        self._application = application
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises SettingsError where the address cannot be used."""
        runner = web.AppRunner(
            self._application, access_log=None, shutdown_timeout=_SHUTDOWN_S, handle_signals=False
        )
        await runner.setup()
        host, _, port = self._address.rpartition(":")
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                partial(_accepted, runner), host.strip("[]"), int(port), backlog=_BACKLOG
            )
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"{self._variable}: cannot listen on {self._address}: {error.strerror or error}"
            ) from None
        self._runner = runner

    async def close(self) -> None:
        """Stop listening; requests under way get a second. Harmless when called again."""
        runner, self._runner = self._runner, None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        if runner is not None:
            await runner.cleanup()

    @property
    def port(self) -> int:
        """The port that is listened on, also where the address says 0. RuntimeError before."""
        if self._listener is None:
            raise RuntimeError(f"the port of {self._variable} is not open")
        return int(self._listener.sockets[0].getsockname()[1])


def _accepted(runner: web.AppRunner) -> asyncio.Protocol:
    """The protocol of a new connection, with room made for it."""
    server = runner.server
    assert server is not None  # noqa: S101 - the port is open
    connections = server.connections
    for oldest in connections[: max(0, len(connections) + 1 - MAX_CONNECTIONS)]:
        oldest.force_close()
    return server()


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
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
        return json_reply(page, error.status, allow)
    except ConnectionResetError:
        raise  # the one who asked has left
    except Exception:  # the port must answer whatever a page does
        log.exception("%s failed", request.path)
        page = error_page("This page failed; the log says why.", "internal_error", "server_error")
        return json_reply(page, 500)


def _what_to_do(request: web.Request, error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"Use {' or '.join(sorted(error.allowed_methods))} on this path."
    paths = sorted(
        resource.canonical for resource in request.app.router.resources() if resource.canonical
    )
    return f"There is no such page. There are: {', '.join(paths)}."


def json_reply(
    page: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A page of plain JSON values, indented for a reader at a terminal."""
    return web.json_response(page, status=status, headers=headers, dumps=_dumps)


def _dumps(page: object) -> str:
    return json.dumps(page, indent=2) + "\n"


async def read_body(request: web.Request, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge, and BadBody where it cannot be decoded.

    The application's `client_max_size` must be above the limit by one: some versions of aiohttp
    refuse a body of just that size.
    """
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
