"""Connections to engines that go wrong, over real sockets: each heals by itself."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
import zmq.auth

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceManager
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.backends import NewIndex, new_index
from tests.fault_proxy import FaultProxy
from tests.kv_publisher import KvPublisher, payload_of, stored, tokens_of
from tests.support import eventually

__all__ = ["new_index"]

MODEL = "m"
POD = "default/p"
EXACT, PARTIAL, LOST = SourceState.EXACT, SourceState.PARTIAL, SourceState.LOST


class Follower:
    """One source of an engine, perhaps through proxies."""

    def __init__(self, new_index: NewIndex, **settings: object) -> None:
        self.index = new_index()
        self.metrics = Metrics()
        values = {"kv_replay_timeout_s": 0.5, **settings}
        self.subscriber = Subscriber(
            self.index, Settings(**values), self.metrics, lambda source: None
        )

    def follow(self, events: str, replays: str | None) -> None:
        self.source = self.index.add_source(MODEL)
        self.subscriber.add(self.source, POD, Rank(0, events, replays))

    @property
    def state(self) -> SourceState:
        feed = self.subscriber.feed(self.source)
        assert feed is not None
        return feed.sync.state

    @property
    def depth(self) -> int:
        return self.index.match(MODEL, tokens_of(range(1, 65))).get(self.source, 0)

    def reaches(self, state: SourceState, depth: int) -> None:
        eventually(lambda: (self.state, self.depth) == (state, depth), timeout_s=20)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def follower(new_index: NewIndex) -> Iterator[Callable[..., Follower]]:
    made: list[Follower] = []

    def make(**settings: object) -> Follower:
        made.append(Follower(new_index, **settings))
        return made[-1]

    yield make
    for one in made:
        one.subscriber.close()


@pytest.fixture
def engine() -> Iterator[KvPublisher]:
    with KvPublisher() as publisher:
        yield publisher


@pytest.fixture
def proxies(engine: KvPublisher) -> Iterator[tuple[FaultProxy, FaultProxy]]:
    pair = FaultProxy(engine.port), FaultProxy(engine.replay_port)
    yield pair
    for proxy in pair:
        proxy.close()


def fill(engine: KvPublisher, first: int, last: int) -> None:
    for block in range(first, last + 1):
        engine.publish(stored([block], parent=block - 1 or None))


def test_a_replay_port_that_opens_later_gives_what_was_missed(
    follower: Callable[..., Follower],
    engine: KvPublisher,
    proxies: tuple[FaultProxy, FaultProxy],
) -> None:
    events, replays = proxies
    replays.refuses = True
    fill(engine, 1, 3)
    one = follower()
    one.follow(events.endpoint, replays.endpoint)
    one.reaches(PARTIAL, 0)
    assert engine.asked_from == []
    replays.refuses = False
    one.reaches(EXACT, 3)


def test_a_replay_port_that_was_mute_gives_it_as_soon_as_it_answers(
    follower: Callable[..., Follower], engine: KvPublisher
) -> None:
    fill(engine, 1, 3)
    engine.answers = False
    one = follower()
    one.follow(engine.endpoint, engine.replay_endpoint)
    one.reaches(PARTIAL, 0)
    engine.answers = True
    fill(engine, 4, 4)
    one.reaches(EXACT, 4)


def test_a_connection_that_brought_nonsense_is_made_anew(
    follower: Callable[..., Follower], engine: KvPublisher
) -> None:
    """libzmq leaves such a socket alone for ever."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        port = int(impostor.getsockname()[1])
        one = follower()
        one.follow(f"tcp://127.0.0.1:{port}", engine.replay_endpoint)
        client, _ = impostor.accept()
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)
        labels = {"pod": POD, "rank": "0"}
        eventually(lambda: one.count("aibrix_kv_handshake_failures_total", **labels) >= 1)
        again, _ = impostor.accept()
        client.close()
        again.close()


def test_a_handshake_that_hangs_is_begun_anew(
    follower: Callable[..., Follower],
    engine: KvPublisher,
    proxies: tuple[FaultProxy, FaultProxy],
) -> None:
    events, replays = proxies
    events.swallows = True
    fill(engine, 1, 2)
    one = follower()
    one.follow(events.endpoint, replays.endpoint)
    eventually(lambda: events._pipes)
    events.swallows = False
    one.reaches(EXACT, 2)


def test_a_message_above_the_limit_costs_its_connection_and_no_more(
    follower: Callable[..., Follower], engine: KvPublisher
) -> None:
    one = follower(kv_max_message_bytes=4096)
    one.follow(engine.endpoint, engine.replay_endpoint)
    one.reaches(EXACT, 0)
    fill(engine, 1, 1)
    one.reaches(EXACT, 1)
    engine.publish(stored([90], block_size=8000))
    labels = {"pod": POD, "rank": "0"}
    eventually(lambda: one.count("aibrix_kv_disconnects_total", **labels) >= 1)

    def follows_again() -> bool:
        engine.publish(stored([1]))
        return one.depth == 1 and one.state is PARTIAL

    eventually(follows_again, timeout_s=20)


def test_a_network_that_holds_all_bytes_is_noticed_by_heartbeats(
    follower: Callable[..., Follower],
    engine: KvPublisher,
    proxies: tuple[FaultProxy, FaultProxy],
) -> None:
    events, replays = proxies
    one = follower(kv_heartbeat_s=0.1)
    one.follow(events.endpoint, replays.endpoint)
    fill(engine, 1, 2)
    one.reaches(EXACT, 2)
    events.holds = True
    labels = {"pod": POD, "rank": "0"}
    eventually(lambda: one.count("aibrix_kv_disconnects_total", **labels) >= 1)
    fill(engine, 3, 3)
    events.holds = False
    one.reaches(EXACT, 3)


def test_a_silent_source_without_a_replay_port_is_stale_then_lost(
    follower: Callable[..., Follower], engine: KvPublisher
) -> None:
    one = follower(kv_stale_after_s=0.3, kv_lost_after_s=1.0)
    one.follow(engine.endpoint, None)
    eventually(lambda: one.state is PARTIAL)
    labels = {"pod": POD, "rank": "0"}
    eventually(lambda: one.count("aibrix_kv_source_stale", **labels) == 1)
    eventually(lambda: one.state is LOST)
    fill(engine, 1, 1)
    eventually(lambda: one.depth == 1)
    eventually(lambda: one.count("aibrix_kv_source_clears_total", reason="stale") == 1)
    assert one.depth == 0


class TestCurve:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> dict[str, str]:
        for name in ("engine", "replica", "stranger"):
            zmq.auth.create_certificates(tmp_path, name)
        return {path.name: str(path) for path in tmp_path.iterdir()}

    @pytest.mark.parametrize("known", [True, False])
    def test_only_with_the_engines_key_a_stream_is_read(
        self, follower: Callable[..., Follower], keys: dict[str, str], known: bool
    ) -> None:
        context = zmq.Context()
        pub = context.socket(zmq.PUB)
        _, secret = zmq.auth.load_certificate(keys["engine.key_secret"])
        assert secret is not None
        pub.curve_secretkey = secret
        pub.curve_server = True
        port = pub.bind_to_random_port("tcp://127.0.0.1")
        stop = threading.Event()

        def publish() -> None:
            number = 0
            while not stop.wait(0.02):
                payload = payload_of(stored([1]))
                pub.send_multipart([b"", number.to_bytes(8, "big"), payload])
                number += 1

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            server = keys["engine.key" if known else "stranger.key"]
            client = keys["replica.key_secret"]
            one = follower(kv_curve_server_key_file=server, kv_curve_client_key_file=client)
            one.follow(f"tcp://127.0.0.1:{port}", None)
            if known:
                eventually(lambda: one.depth == 1)
            else:
                name = "aibrix_kv_handshake_failures_total"
                eventually(lambda: one.count(name, pod=POD, rank="0") >= 1)
                assert one.depth == 0
        finally:
            stop.set()
            thread.join()
            context.destroy(0)

    @pytest.mark.parametrize(
        ("server", "client", "said"),
        [
            ("engine.key", "", "AIBRIX_KV_CURVE_CLIENT_KEY_FILE is not"),
            ("", "replica.key_secret", "AIBRIX_KV_CURVE_SERVER_KEY_FILE is not"),
            ("none", "replica.key_secret", "AIBRIX_KV_CURVE_SERVER_KEY_FILE: none cannot be read"),
            ("engine.key", "replica.key", "holds no secret key"),
            (__file__, "replica.key_secret", "is no CURVE certificate"),
        ],
    )
    def test_keys_that_cannot_be_used_stop_the_start(
        self, keys: dict[str, str], server: str, client: str, said: str
    ) -> None:
        settings = Settings(
            kv_event_sync=True,
            use_remote_tokenizer=True,
            kv_curve_server_key_file=keys.get(server, server),
            kv_curve_client_key_file=keys.get(client, client),
        )
        with pytest.raises(SettingsError, match=said):
            SourceManager(object(), settings, Metrics(), lambda source: None)  # type: ignore[arg-type]


_PUBLISHER = """
import sys, time
from tests.kv_publisher import KvPublisher, stored
engine = KvPublisher()
print(engine.endpoint, engine.replay_endpoint, flush=True)
for line in sys.stdin:
    engine.publish(stored([int(line)], parent=int(line) - 1 or None))
    print(line, end="", flush=True)
"""


def test_a_stopped_publisher_process_is_noticed_and_followed_again(
    follower: Callable[..., Follower],
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PUBLISHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def publish(block: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{block}\n")
        process.stdin.flush()
        process.stdout.readline()

    try:
        one = follower(kv_heartbeat_s=0.2, kv_lost_after_s=1.5)
        one.follow(*process.stdout.readline().split())
        publish(1)
        one.reaches(EXACT, 1)
        os.kill(process.pid, signal.SIGSTOP)
        labels = {"pod": POD, "rank": "0"}
        eventually(lambda: one.count("aibrix_kv_disconnects_total", **labels) >= 1)
        one.reaches(LOST, 0)
        os.kill(process.pid, signal.SIGCONT)
        publish(2)
        one.reaches(EXACT, 2)
    finally:
        process.kill()
        process.wait()
