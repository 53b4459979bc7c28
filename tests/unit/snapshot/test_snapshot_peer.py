"""The snapshot of another replica, over real HTTP: taken whole, or refused with a reason."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from aibrix_extproc.admin.snapshot_page import SnapshotPage
from aibrix_extproc.snapshot import peer
from aibrix_extproc.snapshot.format import Refusal, SnapshotRefused
from tests.support import free_port
from tests.unit.snapshot.test_snapshot_format import snapshot

WHOLE = snapshot(b"one", b"two")
LIMIT_BYTES = 1_000_000


class Replica:
    """Streams what it is given, through the real page."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self.parts = parts
        self.hold: asyncio.Event | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part
        if self.hold is not None:
            await self.hold.wait()


UrlOf = Callable[[Replica], Awaitable[str]]


@pytest.fixture
async def url_of() -> AsyncIterator[UrlOf]:
    runners: list[web.AppRunner] = []

    async def serve(replica: Replica) -> str:
        application = web.Application()
        application.add_routes(SnapshotPage(replica).routes())
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield serve
    for runner in runners:
        await runner.cleanup()


async def refusal(url: str, limit_bytes: int = LIMIT_BYTES) -> SnapshotRefused:
    with pytest.raises(SnapshotRefused) as refused:
        await peer.fetch(url, None, limit_bytes)
    return refused.value


async def test_a_snapshot_is_taken_over_whole(url_of: UrlOf, tmp_path: Path) -> None:
    replica = Replica(WHOLE[:10], WHOLE[10:])
    file = await peer.fetch(await url_of(replica), tmp_path, LIMIT_BYTES)
    assert [file.export(record) for record in file.contents.records] == [b"one", b"two"]
    assert os.listdir(tmp_path) == []
    file.close()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((WHOLE[:-5],), Refusal.DAMAGED),
        ((WHOLE[:30], OSError("the index is gone")), Refusal.UNREADABLE),
        ((b"<html>",), Refusal.FOREIGN),
        ((WHOLE, bytes(LIMIT_BYTES)), Refusal.TOO_LARGE),
    ],
    ids=["cut off", "broken off", "something else", "without end"],
)
async def test_what_is_none_is_refused(
    url_of: UrlOf, parts: tuple[bytes | Exception, ...], reason: Refusal
) -> None:
    assert (await refusal(await url_of(Replica(*parts)))).reason is reason


async def test_a_replica_that_is_not_there_is_refused() -> None:
    error = await refusal(f"http://127.0.0.1:{free_port()}")
    assert error.reason is Refusal.UNREADABLE


async def test_a_port_without_such_a_page_is_refused(url_of: UrlOf) -> None:
    error = await refusal(await url_of(Replica()) + "/elsewhere")
    assert error.reason is Refusal.UNREADABLE
    assert "answered 404: is it a peers' port?" in str(error)


async def test_a_replica_that_falls_silent_is_refused(
    url_of: UrlOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "SILENCE_S", 0.1)
    replica = Replica(WHOLE[:30])
    replica.hold = asyncio.Event()
    error = await refusal(await url_of(replica))
    assert error.reason is Refusal.UNREADABLE
    assert "too long" in str(error)
    replica.hold.set()


async def test_a_folder_that_cannot_be_written_is_refused(url_of: UrlOf, tmp_path: Path) -> None:
    with pytest.raises(SnapshotRefused, match="no room"):
        await peer.fetch(await url_of(Replica(WHOLE)), tmp_path / "no", LIMIT_BYTES)
