"""The levers over HTTP: one page that shows them all, one path to move each.

Owns the routes and the shape of what is sent. What a lever does is in `levers`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aibrix_extproc.admin.http import json_reply, read_body
from aibrix_extproc.admin.pages import error_page
from aibrix_extproc.errors import BadBody
from aibrix_extproc.levers import LeverBoard, LeverRefused
from aibrix_extproc.setting_server import LogLevel
from aibrix_extproc.setting_types import UPPER
from aibrix_extproc.settings import Settings

_LIMIT_BYTES: Final = 10_000
_PATH: Final = "/debug/levers"

AFTER_A_RESTART: Final = "after a restart every lever is at its default"


class _Move(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _OnOff(_Move):
    """`{"on": true}`"""

    on: bool


class _PodOut(_Move):
    """`{"pod": "namespace/name", "out": true}`"""

    pod: Annotated[str, Field(max_length=512)]
    out: bool


class _Resync(_Move):
    """`{"pod": "namespace/name", "rank": 0}`"""

    pod: Annotated[str, Field(max_length=512)]
    rank: int = 0


class _Level(_Move):
    """`{"level": "DEBUG"}`"""

    model_config = ConfigDict(strict=False)

    level: Annotated[LogLevel, UPPER]


M = TypeVar("M", bound=_Move)


class LeverPages:
    """`GET /debug/levers`, and a POST below it for each lever."""

    def __init__(self, board: LeverBoard, settings: Settings) -> None:
        self._board = board
        self._settings = settings

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get(_PATH, self._show),
            web.post(f"{_PATH}/event-sync", self._event_sync),
            web.post(f"{_PATH}/shadow", self._shadow),
            web.post(f"{_PATH}/pod-out", self._pod_out),
            web.post(f"{_PATH}/resync", self._resync),
            web.post(f"{_PATH}/log-level", self._log_level),
            web.post(f"{_PATH}/overload", self._overload),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        return json_reply(self._page())

    async def _event_sync(self, request: web.Request) -> web.Response:
        move = await _move(request, _OnOff)
        return await self._moved(self._board.set_event_sync(move.on, _who(request)))

    async def _shadow(self, request: web.Request) -> web.Response:
        move = await _move(request, _OnOff)
        return await self._moved(self._board.set_shadow(move.on, _who(request)))

    async def _overload(self, request: web.Request) -> web.Response:
        move = await _move(request, _OnOff)
        return await self._moved(self._board.set_overload(move.on, _who(request)))

    async def _pod_out(self, request: web.Request) -> web.Response:
        move = await _move(request, _PodOut)
        return await self._moved(self._board.set_pod_out(move.pod, move.out, _who(request)))

    async def _resync(self, request: web.Request) -> web.Response:
        move = await _move(request, _Resync)
        return await self._moved(self._board.resync(move.pod, move.rank, _who(request)))

    async def _log_level(self, request: web.Request) -> web.Response:
        move = await _move(request, _Level)
        return await self._moved(self._board.set_log_level(move.level, _who(request)))

    async def _moved(self, move: Any) -> web.Response:
        """What holds after a move; `changed` is false where it stood so already."""
        try:
            changed = await move
        except LeverRefused as error:
            status, code = (404, "unknown") if error.unknown else (409, "refused")
            return json_reply(
                error_page(error.message, f"lever_{code}", "invalid_request_error"), status
            )
        return json_reply({"changed": changed is not False, **self._page()})

    def _page(self) -> dict[str, Any]:
        board, settings = self._board, self._settings
        return {
            "levers": {
                "event-sync": _lever(_word(board.event_sync), _word(settings.kv_event_sync)),
                "shadow": _lever(_word(board.shadow), "off"),
                "pod-out": _lever(list(board.pods_out()), []),
                "overload": _lever(_word(board.overload), _word(settings.max_start_delay_s > 0)),
                "log-level": _lever(str(board.log_level), str(settings.log_level)),
            },
            "note": AFTER_A_RESTART,
            "history": [asdict(pull) for pull in board.history()],
        }


def _lever(now: object, default: object) -> dict[str, object]:
    return {"now": now, "default": default, "at_default": now == default}


def _word(on: bool) -> str:
    return "on" if on else "off"


def _who(request: web.Request) -> str:
    """The address that the connection comes from: no header can say another."""
    return request.remote or "unknown"


async def _move(request: web.Request, kind: type[M]) -> M:
    """The body as a move. Raises BadBody that shows how to write it."""
    body = await read_body(request, _LIMIT_BYTES)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in found["loc"]) or "the body"
        raise BadBody(f"{where}: {found['msg']}. Send {kind.__doc__}.") from None
