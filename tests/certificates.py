"""Certificates for tests, made by the openssl of the PATH.

ca = Authority(folder, "ca")
server = ca.issue("server")        # for localhost and 127.0.0.1
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """One that signs certificates; its own is self-signed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.own = Pair(folder / f"{name}.crt", folder / f"{name}.key")
        openssl(
            *("req", "-x509", *_KEY, "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:true"),
            *("-keyout", self.own.key, "-out", self.own.cert),
        )

    @property
    def path(self) -> Path:
        """Its certificate, which others trust."""
        return self.own.cert

    def issue(self, name: str) -> Pair:
        """A certificate with this common name, for localhost and 127.0.0.1."""
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl("req", *_KEY, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
        openssl(
            *("x509", "-req", "-days", "2", "-in", request, "-out", pair.cert),
            *("-CA", self.own.cert, "-CAkey", self.own.key, "-CAcreateserial"),
            *("-extfile", extensions),
        )
        return pair


def openssl(*arguments: object) -> None:
    """Run it; a failure shows what it said."""
    program = shutil.which("openssl")
    if program is None:
        pytest.fail("no openssl on the PATH: the tests of TLS make their certificates with it")
    ended = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
