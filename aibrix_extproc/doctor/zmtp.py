"""ZMTP's greeting, as bytes: who listens on a port, without subscribing or asking anything.

Owns the first bytes of a connection (ZMTP 3, RFC 23): both sides send 64 bytes (signature,
version, security mechanism), then, with NULL security, a READY command with the type of the
socket. Knows no connection.
"""

from typing import Final

from aibrix_extproc.doctor.facts import Listener

GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
GREETING_BYTES: Final = 64
BEFORE_MECHANISM: Final = 12
"""Bytes of signature and version."""
_SIGNATURE_BYTES: Final = 10
_MECHANISM: Final = slice(12, 32)
_READY: Final = b"\x05READY"
_TYPE: Final = b"socket-type"


def listener(heard: bytes) -> Listener:
    """Who says this."""
    if not heard:
        return Listener.SILENT
    if heard[0] == 0xFF and (len(heard) < _SIGNATURE_BYTES or heard[9] & 1):
        return Listener.ZMQ
    if heard.startswith(b"HTTP/"):
        return Listener.HTTP
    return Listener.OTHER


def mechanism(heard: bytes) -> str:
    """NULL, PLAIN or CURVE; empty before the greeting is whole."""
    if len(heard) < GREETING_BYTES:
        return ""
    return heard[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")


def socket_type(heard: bytes) -> str:
    """PUB, ROUTER, …: from the READY command after the greeting; empty where it is not there."""
    command = heard[GREETING_BYTES:]
    start = command.find(_READY)
    if start < 0:
        return ""
    rest = command[start + len(_READY) :]
    while len(rest) > 5:
        name_bytes = rest[0]
        name, rest = rest[1 : 1 + name_bytes], rest[1 + name_bytes :]
        size = int.from_bytes(rest[:4], "big")
        value, rest = rest[4 : 4 + size], rest[4 + size :]
        if name.lower() == _TYPE:
            return value.decode("ascii", "replace")
    return ""
