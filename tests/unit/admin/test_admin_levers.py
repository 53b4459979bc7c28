"""The levers over real HTTP: what is sent, what comes back, and what is refused."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from aibrix_extproc.admin.debug import DebugServer
from aibrix_extproc.admin.lever_pages import LeverPages
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.levers import LeverBoard
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.support import free_port

SETTINGS = Settings(kv_event_sync=True, use_remote_tokenizer=True, debug_address="127.0.0.1:0")


@pytest.fixture(autouse=True)
def usual_log_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.fixture
async def board() -> AsyncIterator[LeverBoard]:
    metrics = Metrics()
    registry = Registry(metrics)
    manager = SourceManager(PrefixIndex(), SETTINGS, metrics, lambda source: None)
    registry.subscribe(manager.on_pod)
    rank = Rank(0, f"tcp://127.0.0.1:{free_port()}")
    registry.replace(
        [Pod("default", "a", "uid", "10.0.0.1:8000", "m", kv_events=True, ranks=(rank,))]
    )
    manager.start_events()
    yield LeverBoard(SETTINGS, metrics, registry, manager)
    await asyncio.to_thread(manager.close)


@pytest.fixture
async def http(board: LeverBoard) -> AsyncIterator[aiohttp.ClientSession]:
    server = DebugServer(SETTINGS, [LeverPages(board, SETTINGS)])
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session
    await server.close()


async def move(http: aiohttp.ClientSession, lever: str, body: Any) -> tuple[int, Any]:
    async with http.post(f"/debug/levers/{lever}", json=body) as reply:
        return reply.status, await reply.json()


async def test_one_page_shows_every_lever_its_default_and_that_a_restart_resets_all(
    http: aiohttp.ClientSession,
) -> None:
    async with http.get("/debug/levers") as reply:
        page = await reply.json()
    assert page["levers"] == {
        "event-sync": {"now": "on", "default": "on", "at_default": True},
        "shadow": {"now": "off", "default": "off", "at_default": True},
        "pod-out": {"now": [], "default": [], "at_default": True},
        "overload": {"now": "off", "default": "off", "at_default": True},
        "log-level": {"now": "INFO", "default": "INFO", "at_default": True},
    }
    assert "restart" in page["note"]
    assert page["history"] == []


@pytest.mark.parametrize(
    ("lever", "body", "now"),
    [
        ("event-sync", {"on": False}, "off"),
        ("shadow", {"on": True}, "on"),
        ("pod-out", {"pod": "default/a", "out": True}, ["default/a"]),
        ("log-level", {"level": "error"}, "ERROR"),
    ],
)
async def test_a_lever_that_is_moved_shows_in_the_reply_and_with_who_in_the_history(
    http: aiohttp.ClientSession, lever: str, body: Any, now: object
) -> None:
    status, page = await move(http, lever, body)
    assert (status, page["changed"]) == (200, True)
    assert page["levers"][lever]["now"] == now
    assert not page["levers"][lever]["at_default"]
    assert (page["history"][0]["lever"], page["history"][0]["who"]) == (lever, "127.0.0.1")
    status, page = await move(http, lever, body)
    assert (status, page["changed"]) == (200, False)
    assert len(page["history"]) == 1


async def test_a_source_is_synced_anew(http: aiohttp.ClientSession) -> None:
    status, page = await move(http, "resync", {"pod": "default/a"})
    assert (status, page["changed"]) == (200, True)
    assert page["history"][0]["what"] == "default/a rank 0"


@pytest.mark.parametrize(
    ("lever", "body", "named"),
    [
        ("event-sync", {}, "on"),
        ("event-sync", {"on": "maybe"}, "on"),
        ("shadow", {"on": 1}, "on"),
        ("shadow", {"on": True, "of": 1}, "of"),
        ("shadow", [], '{"on": true}'),
        ("shadow", "on", '{"on": true}'),
        ("pod-out", {"pod": "default/a"}, "out"),
        ("pod-out", {"pod": 7, "out": True}, "pod"),
        ("pod-out", {"pod": "x" * 600, "out": True}, "pod"),
        ("resync", {"pod": "default/a", "rank": "zero"}, "rank"),
        ("log-level", {"level": "LOUD"}, "DEBUG"),
        ("log-level", {"level": 3}, "level"),
    ],
    ids=repr,
)
async def test_what_makes_no_sense_is_a_400_that_shows_how_to_write_it(
    http: aiohttp.ClientSession, board: LeverBoard, lever: str, body: Any, named: str
) -> None:
    status, page = await move(http, lever, body)
    assert status == 400
    assert named in page["error"]["message"]
    assert "Send `{" in page["error"]["message"]
    assert board.history() == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"on": true} x', b"[" * 9000],
    ids=["empty", "half", "no text", "more", "deep"],
)
async def test_what_is_no_json_is_a_400(
    http: aiohttp.ClientSession, board: LeverBoard, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    async with http.post("/debug/levers/shadow", data=body, headers=headers) as reply:
        assert reply.status == 400
    assert not board.shadow


async def test_a_body_without_end_is_refused(http: aiohttp.ClientSession) -> None:
    status, _ = await move(http, "shadow", {"on": "x" * 20_000})
    assert status == 413


@pytest.mark.parametrize(
    ("lever", "body"),
    [
        ("pod-out", {"pod": "default/nobody", "out": True}),
        ("resync", {"pod": "default/nobody"}),
        ("resync", {"pod": "default/a", "rank": 1}),
        ("resync", {"pod": "default/a", "rank": -1}),
    ],
    ids=repr,
)
async def test_what_does_not_exist_is_a_404_that_says_where_to_look(
    http: aiohttp.ClientSession, lever: str, body: Any
) -> None:
    status, page = await move(http, lever, body)
    assert status == 404
    assert "/debug/sources" in page["error"]["message"]


async def test_what_cannot_be_now_is_a_409(http: aiohttp.ClientSession) -> None:
    await move(http, "event-sync", {"on": False})
    status, page = await move(http, "resync", {"pod": "default/a"})
    assert status == 409
    assert "event sync is off" in page["error"]["message"]


async def test_no_page_of_another_site_moves_a_lever(
    http: aiohttp.ClientSession, board: LeverBoard
) -> None:
    for headers in (
        {"content-type": "text/plain"},
        {"content-type": "application/json", "origin": "https://evil.example"},
        {"content-type": "application/json", "host": "evil.example"},
    ):
        url, body = "/debug/levers/shadow", b'{"on": true}'
        async with http.post(url, data=body, headers=headers) as reply:
            assert reply.status in {403, 415}
    async with http.get("/debug/levers/shadow") as reply:
        assert reply.status == 405
    assert not board.shadow
