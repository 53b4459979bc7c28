"""The processor goes and comes back: with a snapshot it knows at once what the engines hold."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aibrix_extproc.fakes.config import EngineConfig
from tests.e2e.stack import Stack, gateway
from tests.e2e.watching import MATCHED, caught_up, counted, depths, sources, text
from tests.support import eventually_async, free_port

OPENED = "aibrix_kv_snapshots_opened_total"
SAVES = "aibrix_kv_snapshot_saves_total"
SOURCES = "aibrix_kv_snapshot_sources_total"
CLEARS = "aibrix_kv_source_clears_total"

PEERS = f"127.0.0.1:{free_port()}"
"""The peers' port of the first processor."""
BUFFER_STEPS = 8
"""So few that a replay from the start brings back next to nothing."""
SECOND = {"AIBRIX_KV_SNAPSHOT_PATH": "", "AIBRIX_EXTPROC_PEER_ADDRESS": ""}
ENGINES = [EngineConfig(name=f"engine-{number}", buffer_steps=BUFFER_STEPS) for number in range(2)]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Stack, Path]]:
    path = tmp_path_factory.mktemp("snapshot") / "index.snapshot"
    environment = {
        "AIBRIX_KV_SNAPSHOT_PATH": str(path),
        "AIBRIX_KV_SNAPSHOT_INTERVAL": "0",
        "AIBRIX_EXTPROC_PRE_STOP_DELAY": "0",
        "AIBRIX_EXTPROC_PEER_ADDRESS": PEERS,
    }
    async with gateway(engines=ENGINES, environment=environment) as stack:
        yield stack, path


@pytest_asyncio.fixture(loop_scope="module")
async def warm(shared: tuple[Stack, Path]) -> tuple[Stack, Path]:
    """Both engines and the processor run, and the processor has applied all that was said."""
    stack, path = shared
    if stack.servers[0].process.exit_code is not None:
        await stack.start_server(0)
    for index in range(2):
        await ask_engine(stack, index, text(f"of {index}"))
    await caught_up(stack)
    return stack, path


async def ask_engine(stack: Stack, index: int, prompt: str) -> None:
    """A request that no processor sees."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4}
    url = f"http://{stack.engines[index].address}/v1/completions"
    async with stack.session.post(url, json=body) as reply:
        assert reply.status == 200


async def ended(stack: Stack) -> None:
    """The processor is told to leave, and has left."""
    stack.servers[0].process.terminate()
    assert await stack.servers[0].process.wait() == 0


async def test_the_first_request_after_a_restart_goes_where_its_prefix_is(
    warm: tuple[Stack, Path],
) -> None:
    stack, path = warm
    prompt = text("restart")
    before = await stack.complete(prompt)
    for number in range(BUFFER_STEPS):
        for index in range(2):
            await ask_engine(stack, index, text(f"later {number}", words=20))
    await caught_up(stack)
    await ended(stack)
    assert path.stat().st_size > 0

    await stack.start_server(0)
    after = await stack.complete(prompt)
    assert after.pod == before.pod
    assert int(after.headers[MATCHED]) == after.cached_tokens > 0
    assert await counted(stack, OPENED, origin="file", result="read") == 1
    assert await counted(stack, SOURCES, result="imported") == 2
    assert await counted(stack, CLEARS) == 0
    assert {one["state"] for one in (await sources(stack)).values()} == {"EXACT"}


async def test_a_processor_that_was_killed_goes_on_from_its_last_save(
    warm: tuple[Stack, Path],
) -> None:
    stack, _ = warm
    await ended(stack)
    stack.environment["AIBRIX_KV_SNAPSHOT_INTERVAL"] = "100ms"
    await stack.start_server(0)
    prompt = text("killed")
    before = await stack.complete(prompt)
    await caught_up(stack)
    saves = await counted(stack, SAVES, result="saved")

    async def saved_since() -> bool:
        # The one that is under way may have begun before.
        return await counted(stack, SAVES, result="saved") >= saves + 2

    await eventually_async(saved_since)
    stack.servers[0].process.kill()
    stack.environment["AIBRIX_KV_SNAPSHOT_INTERVAL"] = "0"
    await stack.start_server(0)
    after = await stack.complete(prompt)
    assert after.pod == before.pod
    assert int(after.headers[MATCHED]) == after.cached_tokens > 0
    assert await counted(stack, SOURCES, result="imported") == 2
    assert await counted(stack, CLEARS) == 0


async def test_what_engines_said_meanwhile_is_made_good_by_replay(
    warm: tuple[Stack, Path],
) -> None:
    stack, _ = warm
    prompt = text("meanwhile")
    await stack.complete(text("before"))
    await caught_up(stack)
    await ended(stack)
    await ask_engine(stack, 1, prompt)
    await stack.start_server(0)
    again = await stack.complete(prompt)
    assert again.pod == "engine-1"
    assert int(again.headers[MATCHED]) == again.cached_tokens > 0
    assert await counted(stack, CLEARS) == 0


async def test_an_engine_that_was_restarted_meanwhile_starts_clean(
    warm: tuple[Stack, Path],
) -> None:
    stack, _ = warm
    prompt = text("engine")
    held = await stack.complete(prompt)
    assert held.pod is not None
    index = [engine.config.name for engine in stack.engines].index(held.pod)
    await caught_up(stack)
    await ended(stack)
    await stack.engines[index].close()
    await stack.start_engine(index)

    await stack.start_server(0)
    assert (await depths(stack, prompt)).get(held.pod, 0) == 0
    assert await counted(stack, SOURCES, result="imported") == 2
    assert await counted(stack, CLEARS, reason="restart") == 1


async def test_a_damaged_file_is_refused_and_the_processor_serves(
    warm: tuple[Stack, Path],
) -> None:
    stack, path = warm
    prompt = text("damaged")
    before = await stack.complete(prompt)
    await caught_up(stack)
    await ended(stack)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    server = await stack.start_server(0)
    assert await counted(stack, OPENED, origin="file", result="damaged") == 1
    assert f"the snapshot {path} is not used: it is damaged" in server.process.log_path.read_text()
    after = await stack.complete(prompt)
    assert (after.status, after.pod) == (200, before.pod)
    assert int(after.headers[MATCHED]) == after.cached_tokens > 0


@pytest.mark.parametrize("port", ["peers", "debug"])
async def test_a_second_replica_takes_over_from_the_first(
    warm: tuple[Stack, Path], port: str
) -> None:
    stack, _ = warm
    prompt = text("peer")
    await stack.complete(prompt)
    await caught_up(stack)
    url = f"http://{PEERS}" if port == "peers" else stack.servers[0].debug_url
    second = await stack.add_server(SECOND, "--from-peer", url)
    try:
        assert await counted(stack, OPENED, server=1, origin="peer", result="read") == 1
        assert await counted(stack, SOURCES, server=1, result="imported") == 2
        assert await counted(stack, CLEARS, server=1) == 0
        held = {name: one["placements"] for name, one in (await sources(stack)).items()}
        taken = {name: one["placements"] for name, one in (await sources(stack, 1)).items()}
        assert taken == held
    finally:
        second.process.kill()
        stack.servers.pop()


async def test_a_replica_that_cannot_be_reached_costs_only_warmth(
    warm: tuple[Stack, Path],
) -> None:
    stack, _ = warm
    second = await stack.add_server(SECOND, "--from-peer", stack.servers[0].admin_url)
    try:
        assert await counted(stack, OPENED, server=1, origin="peer", result="unreadable") == 1
        assert {one["state"] for one in (await sources(stack, 1)).values()} <= {"EXACT", "PARTIAL"}
    finally:
        second.process.kill()
        stack.servers.pop()


async def test_a_replica_that_asks_itself_takes_its_own_file(warm: tuple[Stack, Path]) -> None:
    """A name that means every replica may mean the one that starts, which has nothing to give."""
    stack, path = warm
    await caught_up(stack)
    await ended(stack)
    assert path.stat().st_size > 0
    url = f"http://{PEERS}"
    second = await stack.add_server({}, "--from-peer", url)
    try:
        assert await counted(stack, OPENED, server=1, origin="peer", result="unreadable") == 1
        assert await counted(stack, OPENED, server=1, origin="file", result="read") == 1
        assert await counted(stack, SOURCES, server=1, result="imported") == 2
    finally:
        second.process.kill()
        stack.servers.pop()
