"""Follows the endpoints file: reads it at the start, and again whenever it changes.

Owns when the file is read and what happens where it cannot be; `endpoints_format` owns what
stands in it. Hands complete listings to the registry.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Final

from aibrix_extproc import background
from aibrix_extproc.discovery.endpoints_format import BadEndpoints, Listing, parse_pods
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings

log = logging.getLogger(__name__)

_VARIABLE: Final = "AIBRIX_EXTPROC_ENDPOINTS_FILE"
_POLL_S: Final = 0.5
_SETTLE_S: Final = 0.05
_SETTLE_READS: Final = 20
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Some 20,000 pods. YAML is read at about 1 ms a pod, with the interpreter's lock held."""

_Signature = tuple[int, ...]


def _signature(path: Path) -> _Signature:
    """Changes with every edit, atomic rename and symlink swap (`stat` follows links)."""
    s = os.stat(path)
    return (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


class EndpointsFile:
    """Feeds the registry from the file: at the start, and again whenever it changes.

    A reading that fails keeps the pods as they were; it is logged once per change of state and
    counts under `discovery_errors{reason="endpoints_file"}`: once per edit, and at each look while
    the file is away.
    """

    def __init__(
        self,
        path: str,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        poll_s: float = _POLL_S,
    ) -> None:
        self._path = Path(path)
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._poll_s = poll_s
        self._states = StateLog(log)
        self._seen: _Signature | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the file, then follow it. Raises SettingsError where it cannot be used."""
        try:
            listing = await asyncio.to_thread(self._read)
        except (OSError, BadEndpoints) as error:
            raise SettingsError(f"{_VARIABLE}: {self._path}: {_why(error)}") from None
        self._registry.replace(listing.pods, listing.ranks_written)
        log.info("%s lists %d pods", self._path, len(listing.pods))
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following. Safe where it was never started."""
        await background.end(self._task)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except Exception:  # a fault of ours must not end the following
                self._metrics.discovery_errors.labels("endpoints_file").inc()
                log.exception("%s could not be followed", self._path)

    async def _look(self) -> None:
        """Read the file again if it is another than the one last read."""
        try:
            if _signature(self._path) == self._seen:
                return
            listing = await asyncio.to_thread(self._read)
        except (OSError, BadEndpoints) as error:
            self._metrics.discovery_errors.labels("endpoints_file").inc()
            self._states.changed(str(self._path), f"not used, the pods stay: {_why(error)}")
            if isinstance(error, OSError):
                self._seen = None
        else:
            self._states.changed(str(self._path), "ok")
            self._registry.replace(listing.pods, listing.ranks_written)
            log.info("%s was read again: %d pods", self._path, len(listing.pods))

    def _read(self) -> Listing:
        """Read and parse, off the event loop: YAML of a thousand pods takes a second.

        A file that still changes is read again, so that half an edit does not remove pods.
        Raises OSError and BadEndpoints.
        """
        for _ in range(_SETTLE_READS):
            seen = _signature(self._path)
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            time.sleep(_SETTLE_S)
            if _signature(self._path) == seen:
                break
        else:
            raise BadEndpoints("it is still being written")
        self._seen = seen
        if len(content) > MAX_FILE_BYTES:
            raise BadEndpoints(f"larger than {MAX_FILE_BYTES} bytes: list fewer pods in one file")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise BadEndpoints("not UTF-8 text") from None
        return parse_pods(text, self._settings.kv_event_port, self._settings.kv_replay_port)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)
