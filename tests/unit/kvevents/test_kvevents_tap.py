"""Whoever watches a source hears every message, those too that are dropped with a connection."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import zmq

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.index import Applied, PrefixIndex
from aibrix_extproc.kvevents.effects import Effect, StateChanged
from aibrix_extproc.kvevents.feed import Feed
from aibrix_extproc.kvevents.sockets import link_options, new_context
from aibrix_extproc.kvevents.subscriber import Reader
from aibrix_extproc.kvevents.tap import Tap
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.kv_publisher import KvPublisher, stored
from tests.support import eventually


class Heard(Tap):
    """Notes all, and may hold the reader up."""

    def __init__(self) -> None:
        self.up: list[bool] = []
        self.numbers: list[int] = []
        self.payloads: set[bytes] = set()
        self.answers: list[tuple[int, int]] = []
        self.states: list[str] = []
        self.sequences: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.waits = threading.Event()

    def contact(self, up: bool) -> None:
        self.up.append(up)

    def message(self, frames: Sequence[bytes], now: float) -> None:
        self.numbers.append(int.from_bytes(frames[1], "big"))
        self.payloads.add(bytes(frames[2]))
        if not self.go_on.is_set():
            self.waits.set()
            self.go_on.wait(20)

    def answer(self, start: int, frames: Sequence[bytes], now: float) -> None:
        self.answers.append((start, int.from_bytes(frames[-2], "big", signed=True)))

    def effect(self, effect: Effect) -> None:
        if isinstance(effect, StateChanged):
            self.states.append(effect.after)

    def applied(self, sequence: int, applied: Applied) -> None:
        self.sequences.append(sequence)


Listen = Callable[[KvPublisher], Heard]


@pytest.fixture
def listen() -> Iterator[Listen]:
    settings = Settings(kv_replay_timeout_s=0.5)
    context = new_context()
    reader = Reader(0, context, settings, link_options(settings))
    reader.start()
    feeds: list[Feed] = []

    def listening(engine: KvPublisher) -> Heard:
        heard, index = Heard(), PrefixIndex()
        rank = Rank(0, engine.endpoint, engine.replay_endpoint)
        source = index.add_source("m")
        feed = Feed(source, "p", rank, index, settings, Metrics(), lambda source: None, tap=heard)
        feeds.append(feed)
        reader.add(feed, engine.endpoint, None)
        return heard

    yield listening
    for feed in feeds:
        feed.stop()
    reader.close()
    reader.join()
    context.term()


def test_messages_answers_states_and_batches_are_heard_in_order(listen: Listen) -> None:
    with KvPublisher() as engine:
        engine.publish(stored([1]))
        heard = listen(engine)
        eventually(lambda: heard.states[-1:] == ["EXACT"])
        engine.publish(stored([2], parent=1))
        eventually(lambda: heard.sequences == [0, 1])
        assert heard.up == [True]
        assert heard.numbers == [1]
        assert heard.answers[:2] == [(0, 0), (0, -1)]
        assert heard.states == ["SYNCING", "EXACT"]


def test_what_an_engine_sent_before_its_restart_is_heard(listen: Listen) -> None:
    """The reader is held up meanwhile: it finds the messages together with the new connection,
    and gives them to nobody, since they may be of either."""
    with KvPublisher() as engine, zmq.Context() as context, context.socket(zmq.SUB) as witness:
        witness.setsockopt(zmq.SUBSCRIBE, b"")
        witness.setsockopt(zmq.RECONNECT_IVL, 500)
        witness.connect(engine.endpoint)
        heard = listen(engine)
        eventually(lambda: heard.up == [True])
        heard.go_on.clear()
        eventually(lambda: engine.publish(stored([1])) >= 0 and heard.waits.wait(0.05))
        eventually(lambda: engine.publish(stored([2])) >= 0 and witness.poll(50))
        before = [engine.next_number for _ in range(5) if engine.publish(stored([3])) >= 0]
        seen: set[int] = set()

        def witnessed(number: int) -> bool:
            while witness.poll(20):
                seen.add(int.from_bytes(witness.recv_multipart()[1], "big"))
            return number in seen

        eventually(lambda: witnessed(before[-1] - 1))
        engine.restart()
        seen.clear()
        eventually(lambda: engine.publish(stored([4])) >= 0 and witnessed(engine.next_number - 1))
        heard.go_on.set()
        eventually(lambda: {number - 1 for number in before} <= set(heard.numbers))
        eventually(lambda: heard.up.count(True) == 2)
