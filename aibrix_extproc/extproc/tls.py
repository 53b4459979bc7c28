"""The gRPC port's certificate: read, checked, and read again when its files change.

Owns what is in force. gRPC asks for it at each handshake (`credentials`); `look` compares the files
with it, a few times a minute, off the handshakes. Files that cannot be used stop the start, and
later leave in force what was: a renewal that went wrong must not end service before the old
certificate's own end. Connections that stand keep what they were opened with.
"""

import asyncio
import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.setting_tls import CERT, CLIENT_CA, KEY
from aibrix_extproc.settings import Settings

LOOK_EVERY_S: Final = 2.0
_THING: Final = "the gRPC port's certificate"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Material:
    """What the files hold, checked."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """The files of the gRPC port's TLS. `look` belongs to one thread; gRPC's threads may ask."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read the files. Raises SettingsError that names the variable of the bad one."""
        self._cert = Path(settings.grpc_tls_cert)
        self._key = Path(settings.grpc_tls_key)
        self._client_ca = Path(settings.grpc_tls_client_ca) if settings.grpc_tls_client_ca else None
        self._metrics = metrics
        self._states = StateLog(log)
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._material = self._read()
        self._fresh = False
        for result in ("renewed", "failed"):
            metrics.tls_reloads.labels(result)

    def credentials(self) -> grpc.ServerCredentials:
        """For the port: it asks again at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._material),
            self._fetch,
            require_client_authentication=self._client_ca is not None,
        )

    def look(self) -> None:
        """Take over what has changed in the files, where it can be used."""
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            material = self._read()
        except SettingsError as error:
            self._broken(str(error), counts=signature != self._seen)
            self._seen = signature
            return
        if self._signature() != signature:
            return  # they are being written: what was read may be of two kinds
        self._seen = signature
        self._states.changed(_THING, "ok")
        self._metrics.tls_broken.set(0)
        with self._lock:
            if material == self._material:
                return
            self._material = material
            self._fresh = True
        self._metrics.tls_reloads.labels("renewed").inc()
        log.info("%s: renewed from %s", _THING, self._cert)

    async def follow(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self.look)
            except Exception:  # a fault here must not leave the certificate to its end
                log.exception("the files of %s could not be looked at", _THING)

    def _broken(self, why: str, counts: bool) -> None:
        self._metrics.tls_broken.set(1)
        if counts:
            self._metrics.tls_reloads.labels("failed").inc()
        self._states.changed(_THING, "not renewed", f"{why}; the one before stays in force")

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What a handshake should use from now on; None: as before. Called by gRPC's threads."""
        with self._lock:
            if not self._fresh:
                return None
            self._fresh = False
            material = self._material
        return _configuration(material)

    def _read(self) -> _Material:
        cert, key = _bytes(CERT, self._cert), _bytes(KEY, self._key)
        _check_certificates(CERT, self._cert)
        try:
            # The password keeps OpenSSL from asking for one at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self._cert, self._key, password=""
            )
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(
                f"{KEY}: {self._key} is no PEM key without a passphrase that belongs to the first "
                f"certificate of {self._cert} ({_short(error)})"
            ) from None
        if self._client_ca is None:
            return _Material(cert, key, None)
        client_ca = _bytes(CLIENT_CA, self._client_ca)
        _check_certificates(CLIENT_CA, self._client_ca)
        return _Material(cert, key, client_ca)

    def _signature(self) -> tuple[object, ...]:
        """Differs after a change: of the file, or of the link that leads to it (Kubernetes)."""
        return tuple(
            _stat(path) for path in (self._cert, self._key, self._client_ca) if path is not None
        )


def _configuration(material: _Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.cert)], root_certificates=material.client_ca
    )


def _bytes(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{variable}: cannot read {path}: {error.strerror or error}") from None


def _check_certificates(variable: str, path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(
            f"{variable}: {path} holds no certificate in PEM ({_short(error)})"
        ) from None


def _short(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def _stat(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_ino, found.st_size)
