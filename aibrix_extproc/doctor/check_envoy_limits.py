"""Envoy's buffers and time-outs on the way of a request. Pure.

Owns these codes. The time-out of a decision is for `check_envoy_filter`.
"""

from collections.abc import Iterator
from typing import Final

from aibrix_extproc.doctor.check_envoy_filter import all_uses, body_mode, dump_of
from aibrix_extproc.doctor.envoy_dump import seconds, whole
from aibrix_extproc.doctor.envoy_uses import Use
from aibrix_extproc.doctor.facts import Facts
from aibrix_extproc.doctor.findings import Area, Code, Finding, NotLooked, Severity

BUFFER: Final = Code(
    "envoy-buffer-limit",
    Area.ENVOY,
    Severity.RED,
    "Envoy buffers less than a body may have: it answers 413 itself (YELLOW: with less than a "
    "mebibyte to spare)",
    "Set `request_body_buffer_limit` of the virtual host, or `per_connection_buffer_limit_bytes` "
    "of the listener (Envoy Gateway: ClientTrafficPolicy, `connection.bufferLimit`), to "
    "`AIBRIX_EXTPROC_MAX_BODY_BYTES` and 1 MiB; or lower that variable.",
    milder=True,
)
BUFFER_FILTER: Final = Code(
    "envoy-buffer-filter",
    Area.ENVOY,
    Severity.RED,
    "a buffer filter on the way takes less than a body may have",
    "Remove it, or raise its `max_request_bytes`.",
)
ROUTE_TIMEOUT: Final = Code(
    "envoy-route-timeout",
    Area.ENVOY,
    Severity.RED,
    "the route cuts answers off (YELLOW: after minutes)",
    "Set `timeout: 0s` on the route (its default is 15 s; Envoy Gateway: BackendTrafficPolicy, "
    "`timeout.http.requestTimeout: 0s`).",
    milder=True,
)
IDLE_TIMEOUT: Final = Code(
    "envoy-stream-idle-timeout",
    Area.ENVOY,
    Severity.YELLOW,
    "an answer that is not streamed is cut off after this much silence",
    "Set `stream_idle_timeout: 1800s` (its default is 5 minutes; Envoy Gateway: "
    "ClientTrafficPolicy, `timeout.http.streamIdleTimeout`).",
)
ADMIN_OPEN: Final = Code(
    "envoy-admin-open",
    Area.ENVOY,
    Severity.YELLOW,
    "Envoy's admin page listens on every interface: who reaches it can stop Envoy",
    "Bind it to 127.0.0.1.",
)

_MIB: Final = 1024 * 1024
_DEFAULT_ROUTE_TIMEOUT_S: Final = 15.0
_SHORT_S: Final = 60.0
_LONG_S: Final = 600.0
_DEFAULT_IDLE_S: Final = 300.0
_EVERYWHERE: Final = ("0.0.0.0:", "[::]:")


def check_buffers(facts: Facts) -> Iterator[Finding]:
    """The largest body fits into Envoy's buffers. In duplex it need not."""
    body = facts.settings.max_body_bytes
    buffered = [u for u in all_uses(facts) if u.config and body_mode(u.config) == "BUFFERED"]
    if not buffered:
        raise NotLooked("no route buffers bodies")
    for use in buffered:
        limit = use.manager.connection_limit_bytes
        if use.start.buffer_limit_bytes is not None and not use.start.direct:
            limit = use.start.buffer_limit_bytes  # a direct response does not look at it
        if limit < body + _MIB:
            mild = Severity.YELLOW if limit >= body else None
            seen = f"Envoy buffers {_mib(limit)}, a body may have {_mib(body)}"
            yield BUFFER.found(use.where, seen, mild)
        yield from _buffer_filters(use, body)


def _buffer_filters(use: Use, body: int) -> Iterator[Finding]:
    for one in use.manager.filters:
        limit = whole(one.config.get("max_request_bytes"), body)
        if one.kind == "Buffer" and not one.disabled and limit < body:
            yield BUFFER_FILTER.found(use.where, f"{one.name} takes {_mib(limit)}")


def _mib(size: int) -> str:
    return f"{size / _MIB:g} MiB"


def check_timeouts(facts: Facts) -> Iterator[Finding]:
    """Answers may take as long as they take."""
    seen: set[tuple[str, str]] = set()
    for use in all_uses(facts):
        for route in use.picked if use.config is not None else ():
            if route.direct or (use.host.name, route.name) in seen:
                continue
            seen.add((use.host.name, route.name))
            limit_s = seconds(route.action.get("timeout"), _DEFAULT_ROUTE_TIMEOUT_S)
            if 0 < limit_s < _LONG_S:
                mild = Severity.YELLOW if limit_s > _SHORT_S else None
                said = "" if "timeout" in route.action else " (its default)"
                yield ROUTE_TIMEOUT.found(route.name, f"timeout is {limit_s:g} s{said}", mild)
            usual = use.manager.config.get("stream_idle_timeout")
            idle_s = seconds(route.action.get("idle_timeout", usual), _DEFAULT_IDLE_S)
            if 0 < idle_s <= _DEFAULT_IDLE_S:
                yield IDLE_TIMEOUT.found(route.name, f"{idle_s:g} s of silence end a request")


def check_admin(facts: Facts) -> Iterator[Finding]:
    """The admin page is not everybody's."""
    admin = dump_of(facts).admin
    if not admin:
        raise NotLooked("the configuration names no admin page")
    if admin.startswith(_EVERYWHERE):
        yield ADMIN_OPEN.found("envoy", f"the admin page listens on {admin}")


CODES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Code))
