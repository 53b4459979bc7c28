"""Event and replay ports that are really wrong, over real ZMQ: each is named, nothing else is."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.auth

from aibrix_extproc.doctor.findings import Severity
from tests.kv_publisher import KvPublisher, payload_of, stored
from tests.support import eventually, free_port
from tests.unit.doctor.doctor_rig import http_engine, site, told
from tests.unit.doctor.engines_rig import OLD, PROMETHEUS, one_pod, pages, ports


async def test_engines_without_events_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, {**OLD, "kv_events_port": None}) as here:
        here.pods[0]["kv_events"] = {"port": free_port(), "replay_port": None}
        findings = await here.examine()
    assert set(told(findings)) == {"event-port-closed", "replay-port-none"}


async def test_an_event_port_that_swallows_connections_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as held:
        address = full.getsockname()
        # A full backlog drops what comes after it, as a network policy does.
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(address)
        async with site(tmp_path, OLD) as here:
            here.pods[0]["kv_events"]["port"] = address[1]
            findings = await here.examine(timeout_s=0.3)
    assert set(told(findings)) == {"event-port-unreachable"}


async def test_http_on_the_event_port_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        http = int(here.engines[0].address.rpartition(":")[2])
        here.pods[0]["kv_events"]["port"] = http
        findings = await here.examine()
    assert set(told(findings)) == {"event-port-not-zmq"}
    assert any("HTTP" in f.seen for f in findings if f.code == "event-port-not-zmq")


async def test_http_on_the_replay_port_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        http = int(here.engines[0].address.rpartition(":")[2])
        here.pods[0]["kv_events"]["replay_port"] = http
        assert set(told(await here.examine())) == {"replay-port-not-zmq"}


async def test_swapped_ports_are_named(tmp_path: Path) -> None:
    async with site(tmp_path, OLD) as here:
        right = here.pods[0]["kv_events"]
        here.pods[0]["kv_events"] = {"port": right["replay_port"], "replay_port": right["port"]}
        assert set(told(await here.examine())) == {"event-ports-swapped"}


async def test_another_kind_of_zmq_socket_is_named(tmp_path: Path) -> None:
    context = zmq.Context()
    try:
        push = context.socket(zmq.PUSH)
        port = push.bind_to_random_port("tcp://127.0.0.1")
        async with site(tmp_path, OLD) as here:
            here.pods[0]["kv_events"]["port"] = port
            assert set(told(await here.examine())) == {"event-port-wrong-socket"}
    finally:
        context.destroy(0)


async def test_a_publisher_that_does_not_finish_its_greeting_is_named(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff" + bytes(8) + b"\x7f")
        await reader.read()  # until the other side leaves
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    async with server, site(tmp_path, OLD) as here:
        here.pods[0]["kv_events"]["port"] = server.sockets[0].getsockname()[1]
        findings = await here.examine(timeout_s=0.3)
    assert set(told(findings)) == {"event-handshake"}


async def test_a_closed_replay_port_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, {**OLD, "kv_replay_port": None}) as here:
        here.pods[0]["kv_events"]["replay_port"] = free_port()
        assert set(told(await here.examine())) == {"replay-port-closed"}


async def test_an_engine_without_a_replay_port_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, {**OLD, "kv_replay_port": None}) as here:
        assert told(await here.examine()) == {"replay-port-none": Severity.YELLOW}


async def test_a_replay_port_that_does_not_answer_is_named(
    publisher: KvPublisher, tmp_path: Path
) -> None:
    publisher.answers = False
    async with (
        http_engine(pages()) as address,
        one_pod(tmp_path, address, ports(publisher)) as here,
    ):
        assert set(told(await here.examine(timeout_s=0.2))) == {"replay-no-answer"}


async def test_a_small_replay_buffer_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, {"buffer_steps": 2}) as here:
        for number in range(3):
            await here.complete(prompt=f"{number} two three " * 40)
        publisher = here.engines[0].ranks[0].publisher
        assert publisher is not None
        eventually(lambda: publisher.sequence > 2)
        assert told(await here.examine()) == {"replay-buffer-small": Severity.YELLOW}


async def test_curve_on_one_side_alone_is_named(tmp_path: Path) -> None:
    context = zmq.Context()
    try:
        pub = context.socket(zmq.PUB)
        pub.curve_server = True
        pub.curve_publickey, pub.curve_secretkey = zmq.curve_keypair()
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        async with site(tmp_path, OLD) as here:
            here.pods[0]["kv_events"] = {"port": port, "replay_port": None}
            findings = await here.examine()
    finally:
        context.destroy(0)
    assert set(told(findings)) == {"event-curve", "replay-port-none"}


@pytest.mark.parametrize("right", [True, False], ids=["right keys", "another engine's key"])
async def test_keys_of_curve_that_do_not_fit_are_named(right: bool, tmp_path: Path) -> None:
    made = {
        name: zmq.auth.create_certificates(tmp_path, name) for name in ("engine", "other", "ours")
    }
    context = zmq.Context()
    try:
        pub = context.socket(zmq.PUB)
        pub.curve_server = True
        pub.curve_publickey, pub.curve_secretkey = zmq.auth.load_certificate(made["engine"][1])
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        async with site(tmp_path, OLD) as here:
            here.pods[0]["kv_events"] = {"port": port, "replay_port": None}
            here.environment |= {
                "AIBRIX_KV_CURVE_SERVER_KEY_FILE": made["engine" if right else "other"][0],
                "AIBRIX_KV_CURVE_CLIENT_KEY_FILE": made["ours"][1],
            }
            findings = await here.examine(timeout_s=10.0 if right else 2.0)
    finally:
        context.destroy(0)
    assert set(told(findings)) == {"replay-port-none"} | (set() if right else {"event-curve"})


@pytest.mark.parametrize(
    ("what", "frames", "codes"),
    [
        ("four frames", [b"", b"", b"\0" * 8, b"x"], {"event-frames"}),
        ("a sequence of four bytes", [b"", b"\0" * 4, b"x"], {"event-frames"}),
        ("a payload that is no msgpack", [b"", b"\0" * 8, b"\xc1"], {"event-payload"}),
        (
            "events of AIBrix's own shape",
            [b"", b"\0" * 8, json.dumps({"events": []}).encode()],
            {"event-payload"},
        ),
        (
            "an event of a kind that nobody knows",
            [b"", b"\0" * 8, payload_of({"type": "BlockFrozen"})],
            {"event-payload"},
        ),
    ],
)
async def test_messages_that_cannot_be_read_are_named(
    what: str, frames: list[bytes], codes: set[str], publisher: KvPublisher, tmp_path: Path
) -> None:
    async with (
        http_engine(pages()) as address,
        one_pod(tmp_path, address, {"port": publisher.port, "replay_port": None}) as here,
        sending(publisher, frames),
    ):
        findings = await here.examine(listen_s=0.2)
    assert set(told(findings)) == codes | {"replay-port-none"}
    mild = what.startswith("an event of a kind")
    assert (told(findings)[next(iter(codes))] is Severity.YELLOW) is mild


@asynccontextmanager
async def sending(publisher: KvPublisher, *messages: list[bytes]) -> AsyncIterator[None]:
    """Someone publishes these again and again meanwhile."""

    async def again() -> None:
        while True:
            for frames in messages:
                await asyncio.to_thread(publisher.publish_raw, frames)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_engines_behind_one_event_port_are_named(
    publisher: KvPublisher, tmp_path: Path
) -> None:
    payload = payload_of(stored([1], block_size=16))
    high, low = ([b"", n.to_bytes(8, "big"), payload] for n in (900, 3))
    events = {"port": publisher.port, "replay_port": None}
    async with (
        http_engine(pages()) as address,
        one_pod(tmp_path, address, events) as here,
        sending(publisher, high, low),
    ):
        findings = await here.examine(listen_s=0.2)
    assert set(told(findings)) == {"event-sequence", "replay-port-none"}


async def test_the_replay_port_of_another_engine_is_named(tmp_path: Path) -> None:
    async with site(tmp_path, OLD, {**OLD, "model": "other"}) as here:
        here.pods[0]["kv_events"]["replay_port"] = here.engines[1].replay_ports[0]
        findings = await here.examine(probe=True)
    assert set(told(findings)) == {"replay-other-engine"}


async def test_an_engine_that_computes_and_publishes_nothing_is_named(
    tmp_path: Path,
) -> None:
    counters = "".join(
        f'vllm:prefix_cache_{name}_total{{engine="0"}} {value}\n'
        for name, value in (("queries", 500_000), ("hits", 10))
    )
    with KvPublisher() as silent:
        found = pages(**{"/metrics": PROMETHEUS.format(16, "True") + counters})
        async with (
            http_engine(found) as address,
            one_pod(tmp_path, address, ports(silent)) as here,
        ):
            assert told(await here.examine()) == {"events-none-published": Severity.YELLOW}
