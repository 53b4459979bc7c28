"""Engines with real publishers behind fault proxies, a subscriber, and what must hold between them.

The engine is the fake's block manager and publisher: its blocks are the truth. A run is a sequence
of faults drawn from a seed.
"""

import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from aibrix_extproc.discovery.pods import Rank
from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.events import EventEncoder, parse_version
from aibrix_extproc.fakes.publisher import EventPublisher
from aibrix_extproc.index import Applied, reference
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.subscriber import Subscriber
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.fault_proxy import FaultProxy
from tests.support import eventually

MODEL = "m"
BLOCK_SIZE = 4
NUM_BLOCKS = 24
PROMPT_BLOCKS = 6
VERSIONS = ("0.10.2", "0.23.0", "0.32.0")


def prompt(number: int) -> list[int]:
    """One of a few prompts; those of one ten have their first half in common."""
    head = [number // 10 * 1000 + i for i in range(BLOCK_SIZE * PROMPT_BLOCKS // 2)]
    return head + [number * 1000 + 500 + i for i in range(BLOCK_SIZE * PROMPT_BLOCKS // 2)]


PROMPTS = [prompt(number) for number in range(60)]


class ChaosEngine:
    """One rank: process, ports, and the proxies before them."""

    def __init__(self, name: str, version: str, *, replay: bool, buffer_steps: int) -> None:
        self.name = name
        self.replay = replay
        self._version = parse_version(version)
        self._buffer_steps = buffer_steps
        self._seeds = 0
        self._ports: tuple[int, int | None] = (0, 0 if replay else None)
        self.running = False
        self.start()
        self.events = FaultProxy(self._ports[0])
        self.replays = FaultProxy(self._ports[1]) if self._ports[1] else None
        self.source = -1

    def start(self) -> None:
        """A new process: empty, with hashes of its own."""
        self._seeds += 1
        hasher = BlockHasher(zlib.crc32(f"{self.name} {self._seeds}".encode()))
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE, hasher)
        self.publisher = eventually(self._publisher)
        self._ports = (self.publisher.port, self.publisher.replay_port)
        self.running = True

    def _publisher(self) -> EventPublisher | None:
        try:
            return EventPublisher(
                EventEncoder(self._version).encode,
                port=self._ports[0],
                replay_port=self._ports[1],
                buffer_steps=self._buffer_steps,
                replay_names_topic=self._version >= (0, 26, 0),
            )
        except OSError:  # the ports of the process before are not free yet
            return None

    def kill(self) -> None:
        if self.running:
            self.publisher.close()
            self.running = False

    def step(self, number: int) -> None:
        """One prompt is computed, and its events are published."""
        if not self.running:
            return
        sequence = CachedSequence(list(PROMPTS[number]))
        reused = self.blocks.reusable(sequence)
        new_tokens = len(sequence.tokens) - len(reused) * BLOCK_SIZE
        if self.blocks.allocate(sequence, new_tokens, reused):
            self.blocks.release(sequence)
        self.publisher.publish(self.blocks.take_events())

    def step_for_sure(self, dice: random.Random) -> None:
        """A step that publishes something."""
        before = self.publisher._given
        while self.publisher._given == before:
            self.step(dice.randrange(len(PROMPTS)))

    def depth(self, tokens: list[int]) -> int:
        """How many leading blocks the engine holds: the truth."""
        sequence = CachedSequence([*tokens, 0])
        return len(self.blocks.reusable(sequence)) if self.running else 0

    def shown(self) -> dict[int, int]:
        """Depth of each prompt by what the replay buffer can still give, after its last hole."""
        batches = list(self.publisher._buffer)
        first = max(0, len(batches) - 1)
        while first > 0 and batches[first][0] - batches[first - 1][0] == 1:
            first -= 1
        index = reference.PrefixIndex()
        source = index.add_source(MODEL)
        for _number, payload in batches[first:]:
            index.apply(source, payload)
        return {n: index.match(MODEL, tokens).get(source, 0) for n, tokens in enumerate(PROMPTS)}

    def heal(self) -> None:
        if not self.running:
            self.start()
        self.publisher._faults.clear()
        for proxy in (self.events, self.replays):
            if proxy is not None:
                proxy.heal()

    def close(self) -> None:
        self.kill()
        for proxy in (self.events, self.replays):
            if proxy is not None:
                proxy.close()


class SlowIndex:
    """An index whose `apply` can be made slow: a subscriber that does not keep up."""

    def __init__(self, index: reference.PrefixIndex) -> None:
        self.index = index
        self.pause_s = 0.0

    def apply(self, source: int, payload: bytes) -> Applied:
        if self.pause_s:
            time.sleep(self.pause_s)
        return self.index.apply(source, payload)

    def clear_source(self, source: int) -> None:
        self.index.clear_source(source)


@dataclass
class Chaos:
    """Engines, one subscriber, and the dice."""

    seed: int
    index: reference.PrefixIndex
    settings: Settings
    engines: list[ChaosEngine] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """What was done, to be read where a run fails."""

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.metrics = Metrics()
        self.slow = SlowIndex(self.index)
        self.subscriber = Subscriber(self.slow, self.settings, self.metrics, lambda source: None)

    def add(self, *, replay: bool) -> ChaosEngine:
        version, steps = self.dice.choice(VERSIONS), self.dice.choice([8, 30, 10_000])
        name = f"default/e{len(self.engines)}"
        engine = ChaosEngine(name, version, replay=replay, buffer_steps=steps)
        engine.source = self.index.add_source(MODEL)
        endpoint = engine.replays.endpoint if engine.replays else None
        self.subscriber.add(engine.source, name, Rank(0, engine.events.endpoint, endpoint))
        self.engines.append(engine)
        return engine

    def close(self) -> None:
        self.subscriber.close()
        for engine in self.engines:
            engine.close()

    # -- faults -------------------------------------------------------------------------------

    def act(self) -> None:
        """One fault, or some steps, of one engine."""
        engine = self.dice.choice(self.engines)
        name, deed = self.dice.choice(self._deeds(engine))
        self.log.append(f"{engine.name}: {name}")
        deed()

    def _deeds(self, engine: ChaosEngine) -> list[tuple[str, Callable[[], object]]]:
        events, publisher = engine.events, engine.publisher
        replays = engine.replays or events
        steps = [("steps", lambda: self._steps(engine, self.dice.randrange(1, 12)))] * 8
        return [
            *steps,
            ("restart", lambda: self._restart(engine)),
            ("kill", engine.kill),
            ("start", lambda: engine.running or engine.start()),
            ("drop batches", lambda: publisher.drop_next(self.dice.randrange(1, 4))),
            ("burn a number", publisher.burn_next),
            ("reset the cache", engine.blocks.reset),
            ("cut events", events.cut),
            ("cut replays", replays.cut),
            ("hold events", lambda: setattr(events, "holds", True)),
            ("hold replays", lambda: setattr(replays, "holds", True)),
            ("let all pass", engine.heal),
            ("swallow events", lambda: setattr(events, "swallows", True)),
            ("mute replays", lambda: setattr(replays, "swallows", True)),
            ("refuse events", lambda: (setattr(events, "refuses", True), events.cut())),
            ("refuse replays", lambda: (setattr(replays, "refuses", True), replays.cut())),
            ("spoil events", lambda: events.spoil(self.dice.randrange(1, 3))),
            ("spoil replays", replays.spoil),
            ("delay", lambda: setattr(events, "delay_s", self.dice.uniform(0, 0.3))),
            ("delay replays", lambda: setattr(replays, "delay_s", self.dice.uniform(0, 0.3))),
            ("another engine takes the ports", lambda: self._swap(engine)),
            ("slow subscriber", lambda: setattr(self.slow, "pause_s", 0.01)),
            ("wait", lambda: time.sleep(self.dice.uniform(0, 0.4))),
        ]

    def _steps(self, engine: ChaosEngine, count: int) -> None:
        for _ in range(count):
            engine.step(self.dice.randrange(len(PROMPTS)))

    def _restart(self, engine: ChaosEngine) -> None:
        engine.kill()
        engine.start()
        self._steps(engine, self.dice.randrange(0, 30))

    def _swap(self, engine: ChaosEngine) -> None:
        """The ports lead to another engine's process; what it held is what counts now."""
        others = [e for e in self.engines if e is not engine and e.replay is engine.replay]
        if not others:
            return
        other = self.dice.choice(others)
        mine = (engine.blocks, engine.publisher, engine._ports, engine.running, engine._version)
        engine.blocks, engine.publisher, engine._ports = other.blocks, other.publisher, other._ports
        engine.running, engine._version = other.running, other._version
        other.blocks, other.publisher, other._ports, other.running, other._version = mine
        for one in (engine, other):
            one.events.target_port = one._ports[0]
            one.events.cut()
            if one.replays is not None:
                one.replays.target_port = one._ports[1] or 0
                one.replays.cut()

    # -- what must hold -----------------------------------------------------------------------

    def heal(self) -> None:
        """The faults are over."""
        self.slow.pause_s = 0.0
        for engine in self.engines:
            engine.heal()
        self.log.append("healed")

    def step_all(self) -> None:
        """Each engine makes one more step, and has published it."""
        for engine in self.engines:
            engine.step_for_sure(self.dice)
        for engine in self.engines:
            eventually(lambda e=engine: e.publisher.sent_all)

    def state(self, engine: ChaosEngine) -> SourceState:
        feed = self.subscriber.feed(engine.source)
        assert feed is not None
        return feed.sync.state

    def wrong(self, engine: ChaosEngine) -> list[str]:
        """What the index holds and the engine does not; with a replay port, what it lacks."""
        troubles = []
        shown = engine.shown() if engine.replay else {}
        for number, tokens in enumerate(PROMPTS):
            held = self.index.match(MODEL, tokens).get(engine.source, 0)
            truth = engine.depth(tokens)
            if held > truth:
                troubles.append(f"prompt {number}: {held} blocks, the engine holds {truth}")
            if held < min(shown.get(number, 0), truth):
                troubles.append(f"prompt {number}: {held} blocks, the buffer shows {shown[number]}")
        return troubles

    def story(self) -> str:
        """What happened, for a run that failed."""
        lines = [f"seed {self.seed}", *self.log[-60:]]
        for engine in self.engines:
            feed = self.subscriber.feed(engine.source)
            lines.append(
                f"{engine.name}: {self.state(engine)} at {feed and feed.sync.sequence}, the engine "
                f"at {engine.publisher.sequence - 1}: {self.wrong(engine)[:3]}"
            )
        return "\n".join(lines)


def run_round(chaos: Chaos, deeds: int, within_s: float) -> float:
    """Some faults, then peace: all that must hold does so within `within_s` of the last step.

    Returns after how many seconds it did.
    """
    for _ in range(deeds):
        chaos.act()
    chaos.heal()
    chaos.step_all()
    began = time.monotonic()
    while any(chaos.wrong(engine) for engine in chaos.engines if engine.replay):
        if time.monotonic() > began + within_s:
            raise AssertionError(chaos.story())
        time.sleep(0.05)
    took_s = time.monotonic() - began
    _without_replay(chaos, began + within_s + chaos.settings.kv_stale_after_s)
    return took_s


def _without_replay(chaos: Chaos, deadline: float) -> None:
    """Nothing false later than the stale limit, and no EXACT that nobody could check."""
    for engine in chaos.engines:
        while not engine.replay and (chaos.wrong(engine) or not _modest(chaos.state(engine))):
            if time.monotonic() > deadline:
                raise AssertionError(chaos.story())
            time.sleep(0.05)


def _modest(state: SourceState) -> bool:
    return state in (SourceState.PARTIAL, SourceState.LOST)


def run_seed(index: reference.PrefixIndex, seed: int, rounds: int, within_s: float) -> list[float]:
    """Some rounds with engines of every kind; how long each took to be right again."""
    settings = Settings(kv_stale_after_s=2.5)
    chaos = Chaos(seed, index, settings)
    try:
        for replay in (True, True, True, False):
            chaos.add(replay=replay)
        return [run_round(chaos, 40, within_s) for _ in range(rounds)]
    finally:
        chaos.close()
