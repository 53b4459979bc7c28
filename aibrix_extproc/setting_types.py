"""The kinds of values that settings have: text of the environment in, a checked value out.

Owns notations and their bounds. Knows no variable and no default: those are `settings`'. What
cannot be used is a ValueError that says what to write.
"""

import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from aibrix_extproc.units import parse_duration_s, parse_size_bytes

_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.]+(%\w+)?\]|[A-Za-z0-9._-]*")
_NAME: Final = re.compile(r"[a-z0-9._-]+")
_MAX_DURATION_S: Final = 366 * 24 * 3600.0
"""A year: timers of the operating system and of uvloop overflow somewhere above."""
_MAX_BODY_BYTES: Final = 1024**3
"""gRPC's limit of a message is a signed 32-bit number, and must be above it."""


def _duration(value: object) -> object:
    return parse_duration_s(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    return parse_size_bytes(value) if isinstance(value, str) else value


def _flag(value: object) -> object:
    if not isinstance(value, str):
        return value
    flag = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value.strip().lower() not in flag:
        raise ValueError(f"{value!r} is neither true nor false")
    return flag[value.strip().lower()]


def _address(value: object) -> object:
    """`:8080` means every interface; `host:port` is taken as it is."""
    if not isinstance(value, str):
        return value
    host, colon, port = value.strip().rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    if not colon or not 0 <= number <= 65535 or not _HOST.fullmatch(host):
        raise ValueError(
            f"{value!r} is not host:port: for every interface write :8080, or [::]:8080 with IPv6"
        )
    return f"{host or '0.0.0.0'}:{number}"  # noqa: S104


def _address_or_none(value: object) -> object:
    """An address, or empty for none."""
    return _address(value) if value != "" else value


def _endpoint(value: object) -> object:
    return parse_url(value) if isinstance(value, str) else ""


def parse_url(value: str) -> str:
    """An http(s) URL without a trailing slash, or empty for none. ValueError for what is none."""
    url = value.strip().rstrip("/")
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port above 65535, or half an IPv6 address
        usable = False
    if not usable or re.search(r"[\s?#]", url):
        raise ValueError(f"{value!r} is not a URL: write http://host:port")
    return url


def _names(value: object) -> object:
    """Host names, separated by commas; none where it is empty."""
    if not isinstance(value, str):
        return value
    names = tuple(name.strip().lower() for name in value.split(",") if name.strip())
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no host name: write a.example,b.example, without ports")
    return names


def _lower(value: object) -> object:
    """A word of a closed list may be written in any case."""
    return value.strip().lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=_MAX_DURATION_S)]
DurationOrZero = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=_MAX_DURATION_S)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Address = Annotated[str, BeforeValidator(_address)]
AddressOrNone = Annotated[str, BeforeValidator(_address_or_none)]
Port = Annotated[int, Field(ge=1, le=65535)]
BodyLimit = Annotated[int, BeforeValidator(_size), Field(ge=0, le=_MAX_BODY_BYTES)]
Endpoint = Annotated[str, BeforeValidator(_endpoint)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
LOWER: Final = BeforeValidator(_lower)
UPPER: Final = BeforeValidator(_upper)


def var(default: Any, name: str, meaning: str) -> Any:
    """A field of a group: the variable's name, its default and the README's line of meaning."""
    return Field(default, validation_alias=name, description=meaning, validate_default=True)


class SettingsGroup(BaseModel):
    """Some variables that belong together; `settings.Settings` joins all groups."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )
