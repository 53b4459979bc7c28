"""`python -m aibrix_extproc.health`: the health check of the container image.

Owns one question to the `/readyz` of the processor in the same container. Imports nothing of this
package, so that it costs little every few seconds.
"""

import http.client
import os
import sys
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "AIBRIX_EXTPROC_ADMIN_ADDRESS"
_DEFAULT: Final = "0.0.0.0:8080"
_EVERYWHERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104
_TIMEOUT_S: Final = 4.0
_SHOWN_BYTES: Final = 1000


def address(environment: Mapping[str, str]) -> str:
    """Where to ask, `host:port`: the admin address, by the loopback where it is every address."""
    host, _, port = (environment.get(VARIABLE, "").strip() or _DEFAULT).rpartition(":")
    return f"{_EVERYWHERE.get(host, host)}:{port}"


def main() -> int:
    """0 where the processor is ready, else 1; prints what it answers."""
    where = address(os.environ)
    try:
        connection = http.client.HTTPConnection(where, timeout=_TIMEOUT_S)
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        print(reply.status, reply.read(_SHOWN_BYTES).decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        print(f"http://{where}/readyz: {error}")
        return 1
    return 0 if reply.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
