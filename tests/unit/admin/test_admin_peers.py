"""The peers' port over real HTTP: one page, and none of the debug port's."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from aibrix_extproc.admin.peers import PeerServer
from aibrix_extproc.admin.snapshot_page import SnapshotPage
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import Settings

HEADLESS = "aibrix-extproc-headless"


class Two:
    """A snapshot of two pieces."""

    async def stream(self) -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"


def peer_server(address: str = "127.0.0.1:0") -> PeerServer:
    settings = Settings(peer_address=address, debug_hosts=(HEADLESS,))
    return PeerServer(settings, SnapshotPage(Two()))


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = peer_server()
    await server.start()
    yield f"http://127.0.0.1:{server.port}"
    await server.close()


async def test_a_replica_gets_the_snapshot_by_the_name_of_the_service(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for host in (None, HEADLESS, f"{HEADLESS}:8082"):
            headers = {} if host is None else {"Host": host}
            async with http.get(f"{url}/snapshot", headers=headers) as reply:
                assert (reply.status, await reply.read()) == (200, b"one two")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/debug/sources"), ("GET", "/debug/levers"), ("POST", "/debug/levers/shadow")],
)
async def test_nothing_else_is_answered_there(url: str, method: str, path: str) -> None:
    async with aiohttp.ClientSession() as http, http.request(method, url + path, json={}) as reply:
        assert reply.status == 404


async def test_a_web_page_gets_no_snapshot(url: str) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{url}/snapshot", headers={"Host": "rebound.example"}) as reply,
    ):
        assert reply.status == 403


async def test_no_port_is_open_unless_an_address_is_set() -> None:
    server = peer_server(address="")
    await server.start()
    with pytest.raises(RuntimeError):
        _ = server.port
    await server.close()


async def test_an_address_that_cannot_be_used_names_the_variable(url: str) -> None:
    taken = peer_server(url.removeprefix("http://"))
    with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_PEER_ADDRESS"):
        await taken.start()


def test_the_address_may_be_unset_and_must_else_be_one() -> None:
    assert Settings.from_environment({}).peer_address == ""
    environment = {"AIBRIX_EXTPROC_PEER_ADDRESS": ":8082"}
    assert Settings.from_environment(environment).peer_address == "0.0.0.0:8082"
    with pytest.raises(SettingsError, match="AIBRIX_EXTPROC_PEER_ADDRESS"):
        Settings.from_environment({"AIBRIX_EXTPROC_PEER_ADDRESS": "peers"})
