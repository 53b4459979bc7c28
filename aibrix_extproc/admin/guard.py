"""Keeps web pages away from the debug and peers' ports: who browses near them must not act there.

Owns the rules, as a middleware. Knows no page. The port has no authentication: it trusts who can
reach it, and a browser on an operator's machine can, on behalf of any site that it shows. So:

- The name in Host must be an IP address, `localhost` or one that the operator has listed: a
  foreign name that is made to resolve here (DNS rebinding) is none of these.
- A request that a browser says comes from another site (Origin, Sec-Fetch-Site) is refused.
- A POST must say `application/json`. No form can send that, and a script of another site must ask
  first by OPTIONS, which is answered 405 without any CORS header.
- Replies may not be framed, sniffed, or kept in a cache.
"""

import ipaddress
import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from aibrix_extproc.admin.http import Handler, json_reply
from aibrix_extproc.admin.pages import error_page
from aibrix_extproc.errors import printable

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become HTML by mistake: browsers that know it refuse innerHTML and the like.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

REPLY_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_HOST: Final = re.compile(r"(\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(:[0-9]+)?")
_OWN_SITES: Final = frozenset(("same-origin", "none"))
_WITH_A_BODY: Final = frozenset(("POST", "PUT", "PATCH", "DELETE"))


def guard(hosts: Collection[str]) -> Middleware:
    """The middleware; `hosts` are names that Host may give beside IP addresses and localhost."""
    allowed = frozenset(host.lower() for host in hosts) | {"localhost"}

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = _refusal(request, allowed)
        response = refusal if refusal is not None else await handler(request)
        response.headers.update(REPLY_HEADERS)
        return response

    return guarded


def _refusal(request: web.Request, allowed: Collection[str]) -> web.Response | None:
    host = request.headers.get("Host", "")
    if not _known_host(host, allowed):
        return _refuse(
            403,
            "unknown_host",
            f"The host '{printable(host)}' is not known here. Ask by an IP address or by "
            "localhost, or list the name in AIBRIX_EXTPROC_DEBUG_HOSTS.",
        )
    site = request.headers.get("Sec-Fetch-Site", "none").lower()
    origin = request.headers.get("Origin")
    if site not in _OWN_SITES or (origin is not None and _host_of(origin) != host.lower()):
        return _refuse(403, "other_site", "Requests of other web sites are not answered here.")
    if request.method in _WITH_A_BODY and request.content_type != "application/json":
        return _refuse(
            415,
            "not_json",
            "Send the header 'content-type: application/json' (curl: -H "
            "'content-type: application/json'): it keeps web pages from posting here.",
        )
    return None


def _known_host(host: str, allowed: Collection[str]) -> bool:
    parts = _HOST.fullmatch(host.lower())
    if parts is None:
        return False
    name = parts["ipv6"] or parts["name"]
    if name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str:
    """`host:port` of an Origin as a Host header gives it; empty for `null` and the like."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _refuse(status: int, code: str, message: str) -> web.Response:
    return json_reply(error_page(message, code, "invalid_request_error"), status)
