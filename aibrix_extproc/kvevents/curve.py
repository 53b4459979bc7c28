"""The keys of CURVE, with which ZMQ encrypts event streams and proves who sends them.

Owns reading the two files. Every engine has the same key pair; this server has another.
"""

from dataclasses import dataclass, field
from pathlib import Path

import zmq.auth

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import Settings

_SERVER_FILE = "AIBRIX_KV_CURVE_SERVER_KEY_FILE"
_CLIENT_FILE = "AIBRIX_KV_CURVE_CLIENT_KEY_FILE"


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Keys in Z85, 40 characters each."""

    server_public: bytes
    """The engines'."""
    public: bytes
    """This server's."""
    secret: bytes = field(repr=False)


def load_curve_keys(settings: Settings) -> CurveKeys | None:
    """The keys that the settings name; None where they name none. Raises SettingsError."""
    server, client = settings.kv_curve_server_key_file, settings.kv_curve_client_key_file
    if not server and not client:
        return None
    if not server or not client:
        missing, given = (_CLIENT_FILE, _SERVER_FILE) if server else (_SERVER_FILE, _CLIENT_FILE)
        raise SettingsError(f"{given} is set, but {missing} is not: CURVE needs both")
    server_public, _ = _load(_SERVER_FILE, server)
    public, secret = _load(_CLIENT_FILE, client)
    if secret is None:
        raise SettingsError(
            f"{_CLIENT_FILE}: {client} holds no secret key; give the key_secret file"
        )
    return CurveKeys(server_public, public, secret)


def _load(variable: str, path: str) -> tuple[bytes, bytes | None]:
    try:
        Path(path).read_bytes()  # pyzmq tells a missing file and a foreign one alike
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{variable}: {path} is no CURVE certificate: {error}") from None
    for key in (public, secret):
        if key is not None and len(key) != 40:
            raise SettingsError(f"{variable}: a key in {path} has not 40 characters of Z85")
    return public, secret
