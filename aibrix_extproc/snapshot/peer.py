"""The snapshot of a running replica, fetched from its peers' or debug port.

Owns the HTTP call, its time-outs and its bound. What comes is kept in a nameless file and checked
like a file of our own: a replica is not trusted to send sense.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import BinaryIO, Final, cast

import aiohttp

from aibrix_extproc.snapshot.files import SnapshotFile
from aibrix_extproc.snapshot.format import Refusal, SnapshotRefused

PAGE: Final = "/snapshot"
CONNECT_TIMEOUT_S: Final = 3.0
SILENCE_S: Final = 10.0
"""Longest pause between two pieces."""
TIMEOUT_S: Final = 60.0
"""Of the whole call."""
UNLIMITED_BYTES: Final = 8 * 1024**3
"""Most that is fetched where the index has no limit; else that limit is the bound, for a block
takes less in a snapshot than in an index."""

_PIECE_BYTES: Final = 1024 * 1024


async def fetch(url: str, folder: Path | None, limit_bytes: int) -> SnapshotFile:
    """The snapshot of the replica whose peers' (or debug) port is at `url`, checked.

    `folder`: for the nameless file; None: the system's for temporary ones. Raises
    SnapshotRefused.
    """
    try:
        # It lives on in what is returned.
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
    except OSError as error:
        raise SnapshotRefused(Refusal.UNREADABLE, f"there is no room for it: {error}") from None
    try:
        await _receive(url.rstrip("/") + PAGE, file, limit_bytes)
        return await asyncio.to_thread(SnapshotFile, file)
    except BaseException:
        file.close()
        raise


async def _receive(url: str, file: BinaryIO, limit_bytes: int) -> None:
    timeout = aiohttp.ClientTimeout(
        total=TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S
    )
    received = 0
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False) as reply,
        ):
            if reply.status != 200:
                raise SnapshotRefused(
                    Refusal.UNREADABLE, f"the replica answered {reply.status}: is it a peers' port?"
                )
            async for piece in reply.content.iter_chunked(_PIECE_BYTES):
                received += len(piece)
                if received > limit_bytes:
                    raise SnapshotRefused(
                        Refusal.TOO_LARGE, f"the replica sends more than {limit_bytes} bytes"
                    )
                await asyncio.to_thread(file.write, piece)
    except TimeoutError:
        raise SnapshotRefused(Refusal.UNREADABLE, "the replica took too long") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise SnapshotRefused(
            Refusal.UNREADABLE, f"the replica cannot be read: {error or type(error).__name__}"
        ) from None
