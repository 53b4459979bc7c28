"""The way of the virtual engines' events into the real index."""

from array import array
from random import Random

from aibrix_extproc.fakes.blocks import BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.index import PrefixIndex
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.simulate.engine import Batch, EngineShape, VirtualEngine, request_of
from aibrix_extproc.simulate.options import router_settings
from aibrix_extproc.simulate.sources import VirtualSource
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.simulate.tokens import block_hashes, token_ids
from aibrix_extproc.workloads.pieces import Piece

SIZE = 16
SHAPE = EngineShape(blocks=120, block_size=SIZE, max_num_seqs=8, max_num_batched_tokens=256)
MODEL = "m"


class Rig:
    """One engine, whose events go through event sync into an index."""

    def __init__(self) -> None:
        self.engine = VirtualEngine(SHAPE, Polynomial())
        self.index = PrefixIndex()
        self.number = self.index.add_source(MODEL)
        self.cleared: list[int] = []
        settings = router_settings({}, events=True)
        self.source = VirtualSource(
            self.number,
            self.index,
            settings,
            self.cleared.append,
            lambda start: self.engine.replay(start, self.now),
        )
        self.now = 0.0

    def ask(self, prompt: "array[int]", answer: "array[int]") -> int:
        """Tokens that the engine reused."""
        request = request_of(prompt, answer, block_hashes(prompt + answer, SIZE))
        self.engine.add(request)
        while not self.engine.idle:
            self.now = self.engine.begin(self.now)
            batch = self.engine.end(self.now).batch
            if batch is not None:
                self.live(batch)
        return request.cached_tokens or 0

    def live(self, batch: Batch) -> None:
        self.source.live(batch, self.now)

    def depth(self, prompt: "array[int]") -> int:
        return self.index.match(MODEL, prompt).get(self.number, 0)


def prompts(seed: int, number: int) -> list["array[int]"]:
    rng = Random(seed)
    made = []
    for n in range(number):
        pieces = [Piece(f"head {rng.randrange(6)}", rng.choice((160, 200)))]
        made.append(token_ids([*pieces, Piece(f"tail {n}", rng.randrange(1, 90))]))
    return made


def test_the_index_knows_before_each_request_what_the_engine_will_reuse() -> None:
    rig = Rig()
    rig.source.connect(0.0)
    reused = 0
    for n, prompt in enumerate(prompts(seed=4, number=150)):
        believed = min(rig.depth(prompt), (len(prompt) - 1) // SIZE) * SIZE
        found = rig.ask(prompt, token_ids([Piece(f"answer {n}", 5 + n % 40)]))
        assert found == believed
        reused += found
    assert reused
    assert rig.source.sync.state is SourceState.EXACT
    assert rig.cleared == []


def test_batches_that_went_before_the_connection_are_replayed() -> None:
    rig = Rig()
    prompt = token_ids([Piece("a", 100)])
    request = request_of(prompt, token_ids([Piece("b", 4)]), block_hashes(prompt, SIZE))
    rig.engine.add(request)
    while not rig.engine.idle:
        rig.now = rig.engine.begin(rig.now)
        rig.engine.end(rig.now)
    assert rig.depth(prompt) == 0
    rig.source.connect(rig.now)
    assert rig.depth(prompt) == 100 // SIZE


def test_a_long_silence_is_asked_about_and_stays_believed() -> None:
    rig = Rig()
    rig.source.connect(0.0)
    prompt = token_ids([Piece("a", 100)])
    rig.ask(prompt, token_ids([Piece("b", 4)]))
    for second in range(1, 600):
        rig.source.tick(rig.now + second)
    assert rig.source.sync.usable
    assert rig.depth(prompt) == 100 // SIZE


def test_hashes_that_are_given_cache_as_those_that_the_fake_engine_computes() -> None:
    given, computed = (BlockManager(41, SIZE, BlockHasher(1)) for _ in range(2))
    for prompt in prompts(seed=9, number=80):
        reused = []
        for blocks, hashes in ((given, block_hashes(prompt, SIZE)), (computed, [])):
            sequence = CachedSequence(tokens=list(prompt), hashes=list(hashes))
            found = blocks.reusable(sequence)
            new = len(prompt) - len(found) * SIZE
            assert blocks.allocate(sequence, new, found)
            blocks.release(sequence)
            events = [type(event).__name__ for event in blocks.take_events()]
            reused.append((len(found), events))
        assert reused[0] == reused[1]
