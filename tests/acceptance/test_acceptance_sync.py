"""Event sync under what takes real time: chaos against the clock, churn, a network that is cut."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.file_limit import raise_file_limit
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.backends import NewIndex, new_index
from tests.chaos import chaos
from tests.kv_publisher import KvPublisher, stored, tokens_of
from tests.support import eventually

__all__ = ["new_index"]

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
EXACT, LOST = SourceState.EXACT, SourceState.LOST


@pytest.mark.timeout(900)
def test_after_random_faults_the_index_is_right_within_three_seconds() -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    print(f"CHAOS_SEED={seed}")
    print(chaos(seed, float(os.environ.get("CHAOS_SECONDS") or 180)))


@pytest.mark.timeout(300)
def test_two_hundred_sources_come_and_go(new_index: NewIndex) -> None:
    raise_file_limit()
    index, metrics = new_index(), Metrics()
    subscriber = Subscriber(index, Settings(), metrics, lambda source: None)
    engines = [KvPublisher() for _ in range(20)]
    dice = random.Random(1)
    followed: dict[int, KvPublisher] = {}
    next_blocks = dict.fromkeys(engines, 1)

    def add() -> None:
        engine = dice.choice(engines)
        source = index.add_source("m")
        rank = Rank(source, engine.endpoint, engine.replay_endpoint)
        subscriber.add(source, "default/p", rank)
        followed[source] = engine

    def remove() -> None:
        source = dice.choice(list(followed))
        del followed[source]
        subscriber.remove(source)
        index.remove_source(source)

    def depth(source: int) -> int:
        return index.match("m", tokens_of(range(1, 2000))).get(source, 0)

    try:
        open_before = len(os.listdir("/proc/self/fd"))
        while len(followed) < 200:
            add()
        for _ in range(1500):
            dice.choice([add, remove])() if 150 < len(followed) < 250 else add()
            if len(followed) >= 250:
                remove()
            engine = dice.choice(engines)
            block = next_blocks[engine]
            engine.publish(stored([block], parent=block - 1 or None), lost=dice.random() < 0.05)
            next_blocks[engine] = block + 1
        for engine in engines:
            block = next_blocks[engine]
            engine.publish(stored([block], parent=block - 1 or None))
        began = time.monotonic()
        for source, engine in followed.items():
            eventually(lambda s=source, e=engine: depth(s) == next_blocks[e], timeout_s=30)
        print(f"{len(followed)} sources right {time.monotonic() - began:.1f} s after the churn")
        for source in list(followed):
            subscriber.remove(source)
            index.remove_source(source)
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= open_before + 20, timeout_s=30)
        assert index.stats().placements == 0
    finally:
        subscriber.close()
        for engine in engines:
            engine.stop()


_SPACE, _HERE, _THERE = "aibrixcut", "aibrixcut0", "aibrixcut1"
_PUBLISHER = """
import sys, zmq
from tests import kv_publisher
bind = zmq.Socket.bind
zmq.Socket.bind = lambda self, address: bind(self, address.replace("127.0.0.1", "0.0.0.0"))
engine = kv_publisher.KvPublisher()
print(engine.port, engine.replay_port, flush=True)
for line in sys.stdin:
    engine.publish(kv_publisher.stored([int(line)], parent=int(line) - 1 or None))
    print(line, end="", flush=True)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network of its own, behind a cable that can be cut."""
    try:
        ip("netns", "add", _SPACE)
        ip("link", "add", _HERE, "type", "veth", "peer", "name", _THERE, "netns", _SPACE)
        ip("addr", "add", "10.213.7.1/30", "dev", _HERE)
        ip("link", "set", _HERE, "up")
        ip("-n", _SPACE, "addr", "add", "10.213.7.2/30", "dev", _THERE)
        ip("-n", _SPACE, "link", "set", _THERE, "up")
        ip("-n", _SPACE, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        subprocess.run(["ip", "netns", "del", _SPACE], check=False, capture_output=True)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield _SPACE
    ip("netns", "del", _SPACE)


@pytest.mark.timeout(120)
def test_a_cut_network_is_noticed_by_heartbeats_and_made_good(namespace: str) -> None:
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", _PUBLISHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    events, replays = (f"tcp://10.213.7.2:{port}" for port in process.stdout.readline().split())
    index, metrics = PrefixIndex(), Metrics()
    subscriber = Subscriber(index, Settings(kv_lost_after_s=10.0), metrics, lambda source: None)
    source = index.add_source("m")

    def publish(block: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{block}\n")
        process.stdin.flush()
        process.stdout.readline()

    def reaches(state: SourceState, depth: int, within_s: float) -> float:
        began = time.monotonic()
        feed = subscriber.feed(source)
        assert feed is not None
        tokens = tokens_of(range(1, 20))
        eventually(
            lambda: (feed.sync.state, index.match("m", tokens).get(source, 0)) == (state, depth),
            timeout_s=within_s,
        )
        return time.monotonic() - began

    def disconnects() -> float:
        labels = {"pod": "default/p", "rank": "0"}
        return metrics.registry.get_sample_value("aibrix_kv_disconnects_total", labels) or 0.0

    try:
        subscriber.add(source, "default/p", Rank(0, events, replays))
        publish(1)
        reaches(EXACT, 1, 10)
        ip("-n", namespace, "link", "set", _THERE, "down")
        began = time.monotonic()
        eventually(lambda: disconnects() >= 1, timeout_s=10)
        print(f"noticed after {time.monotonic() - began:.1f} s")
        reaches(LOST, 0, 15)
        publish(2)
        ip("-n", namespace, "link", "set", _THERE, "up")
        print(f"right again {reaches(EXACT, 2, 10):.1f} s after the cable was whole")
    finally:
        subscriber.close()
        process.kill()
        process.wait()
