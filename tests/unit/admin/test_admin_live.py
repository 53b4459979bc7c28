"""The live page's port: what it serves, to whom, and what it costs while nobody looks."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aibrix_extproc.admin.live import hub as hub_module
from aibrix_extproc.admin.live import pages as pages_module
from aibrix_extproc.admin.live import reach as reach_module
from aibrix_extproc.admin.live.hub import Hub, Viewer
from aibrix_extproc.admin.live.pages import STREAM
from aibrix_extproc.admin.live.reach import takes_connection
from aibrix_extproc.routing.words import REASONS
from tests.live_world import LiveWorld, live_server
from tests.support import eventually_async, free_port

STATIC = Path(pages_module.__file__).parent / "static"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TICK_S", 0.02)


@pytest.fixture
def world() -> LiveWorld:
    return LiveWorld(3)


@pytest.fixture
async def http(world: LiveWorld) -> AsyncIterator[aiohttp.ClientSession]:
    async with live_server(world) as url, aiohttp.ClientSession(url) as session:
        yield session


async def message(reply: aiohttp.ClientResponse, event: str) -> dict[str, Any]:
    """The next message of one kind."""
    async with asyncio.timeout(10):
        while True:
            line = (await reply.content.readline()).decode()
            assert line, "the stream has ended"
            if line == f"event: {event}\n":
                data = (await reply.content.readline()).decode()
                decoded: dict[str, Any] = json.loads(data.removeprefix("data: "))
                return decoded


async def tick_with(reply: aiohttp.ClientResponse, key: str) -> dict[str, Any]:
    """The next tick that has something under `key`."""
    while not (tick := await message(reply, "tick"))[key]:
        pass
    return tick


# -- the page -------------------------------------------------------------------------------------


async def test_the_page_and_all_that_it_names_are_served(http: aiohttp.ClientSession) -> None:
    async with http.get("/") as reply:
        assert (reply.status, reply.content_type) == (200, "text/html")
        page = await reply.text()
    named = set(re.findall(r'(?:href|src)="(/[^"#]*)"', page))
    scripts = [path for path in STATIC.iterdir() if path.suffix == ".js"]
    for script in scripts:
        named |= {f"/live/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert len(named) == len(scripts) + 2
    for path in named:
        async with http.get(path) as reply:
            assert reply.status == 200, path
            assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_has_words_for_every_reason_of_a_decision() -> None:
    script = (STATIC / "candidates.js").read_text()
    block = script.partition("const REASONS = {")[2].partition("};")[0]
    assert set(re.findall(r"^  (\w+):", block, re.MULTILINE)) == set(REASONS)


@pytest.mark.parametrize("path", ["/", "/live/page.js", STREAM])
async def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(
    http: aiohttp.ClientSession, path: str
) -> None:
    async with http.get(path) as reply:
        policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy


def test_the_files_hold_nothing_inline_and_name_nothing_elsewhere() -> None:
    for path in STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|eval|write)\b", text)
    html = (STATIC / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>", html)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/live/page.js", STREAM])
async def test_other_sites_are_kept_out(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str]
) -> None:
    async with http.get(path, headers=headers) as reply:
        assert reply.status == 403


# -- the stream -----------------------------------------------------------------------------------


async def test_a_viewer_gets_all_of_it_first_and_then_what_changes(
    http: aiohttp.ClientSession, world: LiveWorld
) -> None:
    world.decide(seconds=5)
    async with http.get(STREAM) as reply:
        assert reply.content_type == "text/event-stream"
        first = await message(reply, "all")
        assert [row["pod"] for row in first["rows"].values()] == [
            f"default/vllm-{number}" for number in range(3)
        ]
        assert len(first["decisions"]) == 20
        assert sum(point["n"] for point in first["points"]) == 20
        assert first["about"]["strategy"] == "prefix-cache"
        world.change(1, placements=77, connected=False)
        tick = await tick_with(reply, "rows")
        assert tick["rows"] == {"2": {"blocks": 77, "health": "events cut"}}
        assert tick["totals"]["health"] == {"ok": 2, "events cut": 1}
        del world.views[0]
        assert (await tick_with(reply, "gone"))["gone"] == [1]


async def test_a_decision_comes_with_its_candidates_and_no_prompt(
    http: aiohttp.ClientSession, world: LiveWorld
) -> None:
    async with http.get(STREAM) as reply:
        await message(reply, "all")
        world.ring.add(record := world.decision(_now()))
        (decision,) = (await tick_with(reply, "decisions"))["decisions"]
    assert decision["request_id"] == record.request_id
    assert decision["pod"] == record.decision.chosen.candidate.pod.key
    assert [one["score"] for one in decision["top"]] == [s.score for s in record.decision.ranking]
    assert not {"prompt", "messages", "body", "tokens", "ids"} & decision.keys()


async def test_of_very_many_decisions_the_newest_are_sent_and_the_others_counted(
    http: aiohttp.ClientSession, world: LiveWorld
) -> None:
    async with http.get(STREAM) as reply:
        await message(reply, "all")
        for _ in range(500):
            world.ring.add(world.decision(_now()))
        tick = await tick_with(reply, "decisions")
    assert len(tick["decisions"]) == hub_module.SHOWN_DECISIONS
    assert tick["more"] == 500 - hub_module.SHOWN_DECISIONS
    ids = [one["id"] for one in tick["decisions"]]
    assert ids == sorted(ids, reverse=True)


async def test_later_viewers_see_what_the_first_one_sees(
    http: aiohttp.ClientSession, world: LiveWorld
) -> None:
    world.decide(seconds=2)
    async with http.get(STREAM) as first:
        seen = await message(first, "all")
        world.change(0, placements=5)
        await tick_with(first, "rows")
        async with http.get(STREAM) as second:
            later = await message(second, "all")
    assert later["decisions"] == seen["decisions"]
    assert later["rows"]["1"]["blocks"] == 5


async def test_nothing_is_looked_at_while_nobody_looks(
    world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = world.look

    async def look() -> Any:
        nonlocal looks
        looks += 1
        return await real()

    monkeypatch.setattr(world, "look", look)
    hub = Hub(world, world.metrics)
    assert hub._task is None
    assert hub._reach._task is None
    viewer = hub.join(lambda: None)
    await viewer.queue.get()
    hub.leave(viewer)
    await eventually_async(lambda: hub._task is not None and hub._task.done())
    seen, waited = looks, asyncio.get_running_loop().time()
    await eventually_async(lambda: asyncio.get_running_loop().time() > waited + 0.1)
    assert looks == seen
    assert hub._rows == {}
    assert hub._reach._task is None
    await hub.close()


async def test_who_comes_while_the_last_one_is_seen_off_is_served(
    world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(world, world.metrics)
    came: list[Viewer] = []
    real = hub._reach.stop

    async def stop() -> None:
        await real()
        if not came:
            came.append(hub.join(lambda: None))

    monkeypatch.setattr(hub._reach, "stop", stop)
    first = hub.join(lambda: None)
    await first.queue.get()
    hub.leave(first)
    await eventually_async(lambda: came)
    assert await asyncio.wait_for(came[0].queue.get(), 5)
    await hub.close()


async def test_viewers_are_bounded_and_the_one_too_many_is_told(
    http: aiohttp.ClientSession, world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MAX_VIEWERS", 2)
    async with http.get(STREAM) as one, http.get(STREAM) as two:
        await message(one, "all")
        await message(two, "all")
        async with http.get(STREAM) as three:
            assert three.status == 503
            assert (await three.json())["error"]["code"] == "too_many_viewers"
    assert world.metrics.live_cut.labels("too_many")._value.get() == 1

    async def room() -> bool:
        async with http.get(STREAM) as again:
            return again.status == 200

    await eventually_async(room)


async def test_a_viewer_who_does_not_read_is_cut_off_and_the_others_go_on(
    http: aiohttp.ClientSession, world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "TICK_S", 0.001)
    async with http.get(STREAM) as reader:
        await message(reader, "all")
        url = str(http._base_url).rstrip("/")
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        deaf.sendall(f"GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        slow = world.metrics.live_cut.labels("slow")
        name = "x" * 200_000

        async def cut() -> bool:
            world.notes = (name,)
            await message(reader, "tick")
            return slow._value.get() == 1

        await eventually_async(cut)
        assert (await message(reader, "tick"))["notes"] == [name]
        deaf.close()


async def test_a_fault_in_one_look_is_counted_and_all_is_sent_anew(
    http: aiohttp.ClientSession, world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http.get(STREAM) as reply:
        await message(reply, "all")
        real = world.look

        async def broken() -> Any:
            monkeypatch.setattr(world, "look", real)
            raise RuntimeError("broken")

        monkeypatch.setattr(world, "look", broken)
        world.change(0, placements=9)
        assert (await message(reply, "all"))["rows"]["1"]["blocks"] == 9
    assert world.metrics.faults.labels("live_page")._value.get() == 1


async def test_a_viewer_who_leaves_is_forgotten_and_no_error(
    http: aiohttp.ClientSession, world: LiveWorld, caplog: pytest.LogCaptureFixture
) -> None:
    async with http.get(STREAM) as staying:
        await message(staying, "all")
        leaving = await http.get(STREAM)
        await message(leaving, "all")
        hub = world.hub
        assert hub is not None
        assert hub.viewers == 2
        leaving.close()
        await eventually_async(lambda: hub.viewers == 1)
        await message(staying, "tick")
    assert [line for line in caplog.records if line.levelname == "ERROR"] == []


async def test_at_the_end_every_stream_ends(world: LiveWorld) -> None:
    async with aiohttp.ClientSession() as session:
        async with live_server(world) as url:
            reply = await session.get(url + STREAM)
            await message(reply, "all")
        with contextlib.suppress(aiohttp.ClientError):
            await asyncio.wait_for(reply.read(), 5)


async def test_at_the_end_a_viewer_who_does_not_read_is_cut_off(world: LiveWorld) -> None:
    hub = Hub(world, world.metrics)
    cut: list[bool] = []
    viewer = hub.join(lambda: cut.append(True))
    while not viewer.queue.full():
        viewer.queue.put_nowait(b"")
    await hub.close()
    assert (cut, hub.viewers) == ([True], 0)


# -- whether pods answer --------------------------------------------------------------------------


async def test_a_pod_that_refuses_is_seen_and_one_that_comes_back_too(
    http: aiohttp.ClientSession, world: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach_module, "ROUND_S", 0.02)
    port = free_port()
    address = f"127.0.0.1:{port}"
    world.alive.append(address)
    world.pods[0] = type(world.pods[0])("default", "vllm-0", "u", address, "m")
    async with http.get(STREAM) as reply:
        await message(reply, "all")
        while (await tick_with(reply, "rows"))["rows"].get("1") != {"health": "unreachable"}:
            pass
        server = await asyncio.start_server(lambda _r, writer: writer.close(), "127.0.0.1", port)
        while (await tick_with(reply, "rows"))["rows"].get("1") != {"health": "ok"}:
            pass
        server.close()


async def test_a_port_that_swallows_connections_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach_module, "TRY_S", 0.05)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = []
        for _ in range(3):  # its queue is full: further connections are left without an answer
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(address)
            waiting.append(one)
        assert not await takes_connection(f"127.0.0.1:{address[1]}")
        for one in waiting:
            one.close()


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:99999", "[::1]:x"])
async def test_an_address_that_is_none_is_no_answer(address: str) -> None:
    assert not await takes_connection(address)


def _now() -> float:
    return time.time()
