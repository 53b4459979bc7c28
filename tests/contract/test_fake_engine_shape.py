"""The fake engine beside a real vLLM 0.32.0: the same requests give the same events.

Two recordings. The scenario is sent over HTTP, step by step, to a fake engine that has the real
one's tokens. The truth is played to the block manager, step by step of the engine.

Hashes differ, so each recorded hash is paired with ours when both are first stored, and must be
paired so ever after: in parents, in repeats, in removals. With that, events are compared whole:
their number and order, blocks per event, parents, extra keys, adapters, media, what is evicted.

Every step is compared. Not compared: token ids of prompts that nobody tokenized in the recording
(`15_batch`, `16_session`, `17_dup…`, `30_evict…`, `10_turn1`'s answer), because their full blocks
are read from the recorded events; how the events of steps that were under way together divide
into batches; and the three steps of `NOT_SERVED` and `NOT_RECORDED`, but for their blocks.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import msgpack
import pytest

from aibrix_extproc.fakes.blocks import Adapter, BlockHasher, BlockManager, CachedSequence
from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.events import Event, EventEncoder
from aibrix_extproc.fakes.publisher import EventPublisher
from aibrix_extproc.fakes.tokenizer import ChatPrompt
from tests.recordings import payload_of, recorded
from tests.support import eventually_async

SIZE = 32
UNKNOWN = 1_000_000
"""Ids from here on stand for tokens that the recording does not tell: never a full block's."""

Map = Mapping[str, Any]


class Pairs:
    """Which of our hashes is which recorded one."""

    def __init__(self) -> None:
        self._recorded: dict[object, object] = {}
        self._ours: dict[object, object] = {}

    def same(self, recorded: object, ours: object) -> bool:
        """Pair two hashes that are new; two that are known must be each other's."""
        first = self._recorded.setdefault(ours, recorded)
        second = self._ours.setdefault(recorded, ours)
        return first == recorded and second == ours

    def ours(self, recorded: object) -> object:
        return self._ours.get(recorded)

    def compare(self, recorded: Sequence[Map], ours: Sequence[Map]) -> None:
        """All events of a step, whole."""
        assert [shape(event) for event in ours] == [shape(event) for event in recorded]
        for theirs, mine in zip(recorded, ours, strict=True):
            for name in ("block_hashes", "parent_block_hash"):
                left, right = theirs.get(name), mine.get(name)
                many = isinstance(left, list)
                for a, b in zip(left if many else [left], right if many else [right], strict=True):
                    assert self.same(a, b), (name, a, b)


def shape(event: Map) -> Map:
    """An event without its hashes, of which only the number is kept."""
    return {
        name: len(value) if name == "block_hashes" else value
        for name, value in event.items()
        if name != "parent_block_hash"
    }


def events_of(payload: bytes) -> list[Map]:
    return list(msgpack.unpackb(payload)[1])


# -- the scenario, over HTTP -----------------------------------------------------------------------
NOT_ABOUT_THE_CACHE = {
    *("models", "version", "kv_event_sources", "health", "metrics", "metrics_end", "load"),
    *("50_is_sleeping", "20_err_toolong", "20_toolong.tokenize"),
}
NOT_TOLD = {"t0": None, "path": None, "request": None, "response": {}}
"""What the recording lacks of a streamed step."""
STEPS = [
    NOT_TOLD | step
    for step in recorded("0.32-map-u64/http")
    if step["step"] not in NOT_ABOUT_THE_CACHE
]
FRAMES = recorded("0.32-map-u64/frames")

GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")

NOT_SERVED = {"19_responses": "no /v1/responses here", "19_messages": "no /v1/messages here"}
"""Sent as token ids to /v1/completions instead, so that the cache stays in step."""

NOT_RECORDED = {"18_stream": "the recording lacks the request's body; its blocks are known"}
"""Sent as token ids too."""


@dataclass
class Known:
    """The tokens of one prompt as far as the recording tells, and of its answer."""

    prompt: list[int]
    answer: list[int] = field(default_factory=list)


class Chains:
    """The tokens of each recorded block, from the start of its prompt, and that prompt's salt."""

    def __init__(self, frames: Sequence[Map]) -> None:
        self._salts: dict[object, str] = {}
        self._blocks: dict[object, tuple[object, list[int]]] = {}
        for frame in frames:
            for event in events_of(payload_of(frame)):
                if event["type"] != "BlockStored":
                    continue
                parent = event["parent_block_hash"]
                for index, name in enumerate(event["block_hashes"]):
                    tokens = event["token_ids"][index * SIZE : (index + 1) * SIZE]
                    self._blocks[name] = (parent, tokens)
                    extras = [key for key in event["extra_keys"][index] or () if parent is None]
                    if extras and extras[-1] != event["lora_name"]:
                        self._salts[name] = extras[-1]
                    parent = name

    def tokens(self, name: object) -> list[int]:
        found: list[int] = []
        while name is not None:
            name, tokens = self._blocks[name]
            found = [*tokens, *found]
        return found

    def salt(self, name: object) -> str | None:
        while self._blocks[name][0] is not None:
            name = self._blocks[name][0]
        return self._salts.get(name)


def at_once(first: int) -> list[int]:
    """This step and those sent while it was under way (the duplicates were)."""
    group = [first]
    while (other := group[-1] + 1) < len(STEPS) and start_of(other) < STEPS[first]["t1"]:
        group.append(other)
    return group


def in_order() -> Iterator[list[int]]:
    """The numbers of all steps, together where they were sent at once."""
    group = at_once(0)
    while group[-1] + 1 < len(STEPS):
        yield group
        group = at_once(group[-1] + 1)
    yield group


def group_of(number: int) -> list[int]:
    return next(group for group in in_order() if number in group)


def recorded_events(group: Sequence[int]) -> list[Map]:
    """What the engine published between these steps and the next."""
    begin, after = start_of(group[0]), group[-1] + 1
    end = start_of(after) if after < len(STEPS) else float("inf")
    payloads = [payload_of(f) for f in FRAMES if begin <= f["t"] < end]
    return [event for payload in payloads for event in events_of(payload)]


def start_of(number: int) -> float:
    """The step without a time of its own follows the one before it at once."""
    return float(STEPS[number]["t0"] or STEPS[number - 1]["t1"])


def tokenized() -> dict[str, list[int]]:
    """Text, or a chat in JSON, → the ids that the engine's own `/tokenize` or `/render` told."""
    known: dict[str, list[int]] = {}
    for step in STEPS:
        request, response = step["request"], step["response"]
        if step["path"] == "/tokenize" and step["status"] == 200:
            if request.get("add_special_tokens", True):
                known[text_of(request)] = response["tokens"]
        elif step["path"] == "/v1/chat/completions/render":
            known[text_of(request)] = response["token_ids"]
        elif step["path"] == "/v1/completions/render":
            known[text_of(request)] = response[0]["token_ids"]
    return known


def text_of(request: Map) -> str:
    if "messages" not in request:
        return str(request.get("prompt"))
    return chat_key(
        request["messages"],
        request.get("tools"),
        request.get("add_generation_prompt", True),
        request.get("continue_final_message", False),
    )


def chat_key(messages: object, tools: object, generate: bool, go_on: bool) -> str:
    return json.dumps([messages, tools, generate, go_on])


class RecordedTokenizer:
    """The real engine's ids for the scenario's texts, and its answers."""

    def __init__(self) -> None:
        self.known = tokenized()
        self.answers: dict[tuple[int, ...], list[int]] = {}
        self._unknown = count(UNKNOWN)

    def learn(self, text: str, known: Known) -> None:
        self.known.setdefault(text, known.prompt)
        self.answers[tuple(self.known[text])] = known.answer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.known.get(text) or self.unknown(8)  # a text of a refused request

    def encode_chat(self, chat: ChatPrompt) -> list[int]:
        generate, go_on = chat.add_generation_prompt, chat.continue_final_message
        return self.known[chat_key(chat.messages, chat.tools, generate, go_on)]

    def answer(self, prompt: Sequence[int]) -> Iterator[int]:
        yield from self.answers.get(tuple(prompt), [])
        yield from self._unknown

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    def unknown(self, number: int) -> list[int]:
        return [next(self._unknown) for _ in range(number)]


def chain_from_events(tokenizer: RecordedTokenizer, number: int, prompt_tokens: int) -> Known:
    """A prompt that was never tokenized: its full blocks stand in the events, its tail does not."""
    stored = [e for e in recorded_events(group_of(number)) if e["type"] == "BlockStored"]
    tokens = CHAINS.tokens(stored[-1]["block_hashes"][-1]) if stored else []
    prompt = tokens[:prompt_tokens]
    return Known([*prompt, *tokenizer.unknown(prompt_tokens - len(prompt))], tokens[prompt_tokens:])


CHAINS = Chains(FRAMES)


def request_of(tokenizer: RecordedTokenizer, number: int) -> tuple[str, Map]:
    """Path and body to send for a step, with the tokenizer prepared for it."""
    step = STEPS[number]
    body, usage = step["request"], step["response"].get("usage") or {}
    prompt_tokens = usage.get("prompt_tokens") or usage.get("input_tokens") or 5 * SIZE + 2
    if step["step"] in NOT_SERVED or step["step"] in NOT_RECORDED:
        known = chain_from_events(tokenizer, number, prompt_tokens)
        tokenizer.answers[tuple(known.prompt)] = known.answer
        return "/v1/completions", {"model": "tiny", "prompt": known.prompt, "max_tokens": 4}
    prompts = body.get("prompt")
    if isinstance(prompts, list) and isinstance(prompts[0], str):
        stored = [e for e in recorded_events(group_of(number)) if e["type"] == "BlockStored"]
        for prompt, event in zip(prompts, stored, strict=True):
            tail = tokenizer.unknown(prompt_tokens // len(prompts) - len(event["token_ids"]))
            tokenizer.learn(prompt, Known([*event["token_ids"], *tail]))
    elif not isinstance(prompts, list):
        text = text_of(body)
        if text in tokenizer.known:
            tokens = chain_from_events(tokenizer, number, prompt_tokens)
            whole = tokenizer.known[text]
            begins_alike = tokens.prompt[:SIZE] == whole[:SIZE] or len(whole) < SIZE
            tokenizer.learn(text, Known(whole, tokens.answer if begins_alike else []))
        else:
            tokenizer.learn(text, chain_from_events(tokenizer, number, prompt_tokens))
    return step["path"], body


class Tap:
    """Stands between an engine and its publisher, and keeps what is published, as bytes."""

    def __init__(self, publisher: EventPublisher) -> None:
        self.batches: list[list[Map]] = []
        self._publish = publisher.publish
        publisher.publish = self  # type: ignore[method-assign]

    def __call__(self, events: Sequence[Event], timestamp: float | None = None) -> None:
        if events:
            self.batches.append(events_of(EventEncoder((0, 32, 0)).encode(0.0, events)))
        self._publish(events, timestamp)

    def take(self) -> list[Map]:
        batches, self.batches = self.batches, []
        return [event for batch in batches for event in batch]


def engine_of_the_scenario(tokenizer: RecordedTokenizer) -> FakeEngine:
    config = EngineConfig(
        model="tiny",
        adapters=("tiny-lora",),
        block_size=SIZE,
        num_blocks=128,
        max_model_len=1024,
        answer_tokens=0,
    )
    return FakeEngine(config, tokenizer)


async def test_the_scenario_gives_the_recorded_events_step_by_step() -> None:
    tokenizer, pairs = RecordedTokenizer(), Pairs()
    compared: dict[str, int] = {}
    async with engine_of_the_scenario(tokenizer) as engine:
        assert engine.ranks[0].publisher is not None
        tap = Tap(engine.ranks[0].publisher)
        async with aiohttp.ClientSession(f"http://{engine.address}") as client:
            for group in in_order():
                await asyncio.gather(*(send(client, tokenizer, one) for one in group))
                await eventually_async(lambda: not engine.ranks[0].load)
                recorded = recorded_events(group)
                pairs.compare(recorded, tap.take())
                compared[STEPS[group[0]]["step"]] = len(recorded)
    assert sum(compared.values()) == sum(len(events_of(payload_of(frame))) for frame in FRAMES)
    assert compared["30_evict4"] == 17
    assert compared["03_same_again"] == 0
    assert compared["04_report_full"] == 1


async def send(client: aiohttp.ClientSession, tokenizer: RecordedTokenizer, number: int) -> None:
    """Do one step; statuses and refusals must be those recorded."""
    step = STEPS[number]
    path, body = step["path"], step["request"]
    if step["step"] in NOT_RECORDED or (path in GENERATING and step["status"] == 200):
        path, body = request_of(tokenizer, number)
    elif path.endswith("/render") or (path == "/tokenize" and "err" in step["step"]):
        return  # told the ids; and refusals of /tokenize are the unit tests'
    async with client.post(path, json=body) as reply:
        answer = json.loads(await reply.read() or b"{}")
        assert reply.status == step["status"], (step["step"], answer)
        if step["status"] != 200:
            assert answer["error"]["type"] == step["response"]["error"]["type"]
            assert answer["error"]["message"] == step["response"]["error"]["message"]
        elif path == "/tokenize" and step["request"].get("add_special_tokens", True):
            assert answer["tokens"] == step["response"]["tokens"]


# -- the truth, step by step of the engine ---------------------------------------------------------
class TruthPlayer:
    """Plays the recorded requests to a block manager and compares every batch on the way.

    The recording does not tell how long the answers were: a request decodes for as long as the
    next recorded batch is one that decoding explains.
    """

    def __init__(self, frames: Sequence[Map], unhashed_first: bool) -> None:
        self.batches = [events_of(payload_of(frame)) for frame in frames]
        self.at = 0
        self._chains = Chains(frames)
        self._blocks = BlockManager(64, SIZE, BlockHasher(5), unhashed_first)
        self._encoder = EventEncoder((0, 32, 0))
        self._pairs = Pairs()
        self._unknown = count(UNKNOWN)

    def play(self, request: Map, following: Map | None) -> int:
        """One request of the recording; the tokens that the block manager reused for it."""
        if self._cleared_next():
            assert self._blocks.reset()
        if (event := self._unlisted(request)) is not None:
            self._play_unlisted(event)
        adapter = Adapter("tiny-lora", 1) if request["model"] == "tiny-lora" else None
        return self._run(request["token_ids"], adapter, request["cache_salt"], following)

    def _run(
        self,
        tokens: Sequence[int],
        adapter: Adapter | None,
        salt: str | None,
        following: Map | None,
    ) -> int:
        sequence = CachedSequence(list(tokens), adapter, salt)
        reused = self._blocks.reusable(sequence)
        cached = len(reused) * SIZE
        assert self._blocks.allocate(sequence, len(tokens) - cached, reused)
        self._compare()
        while (answer := self._decodes(sequence, following)) is not None:
            for _ in range(SIZE + 1):
                sequence.tokens.append(answer.pop(0) if answer else next(self._unknown))
                assert self._blocks.allocate(sequence, 1)
                if self._compare():
                    break
            else:
                pytest.fail("a whole block was decoded, and nothing happened")
        self._blocks.release(sequence)
        return cached

    def _compare(self) -> bool:
        events = self._blocks.take_events()
        if events:
            self._pairs.compare(self.batches[self.at], events_of(self._encoder.encode(0.0, events)))
            self.at += 1
        return bool(events)

    def _next_stored(self, at: int) -> Map | None:
        batch = self.batches[at] if at < len(self.batches) else []
        return next((event for event in batch if event["type"] == "BlockStored"), None)

    def _cleared_next(self) -> bool:
        batch = self.batches[self.at] if self.at < len(self.batches) else [{"type": ""}]
        return bool(batch[0]["type"] == "AllBlocksCleared")

    def _decodes(self, sequence: CachedSequence, following: Map | None) -> list[int] | None:
        """The next tokens of its answer where the next batch is its own, else None."""
        if self.at >= len(self.batches) or self._cleared_next():
            return None
        stored = self._next_stored(self.at)
        only_removes = stored is None
        if only_removes:
            stored = self._next_stored(self.at + 1)
        if stored is not None and stored["token_ids"] != new_blocks(following):
            full = len(sequence.tokens) // SIZE
            parent = sequence.hashes[full - 1] if full else None
            begun = sequence.tokens[full * SIZE :]
            tokens = stored["token_ids"]
            goes_on = self._pairs.ours(stored["parent_block_hash"]) == parent
            if goes_on and (full or begun) and tokens[: len(begun)] == begun:
                return list(tokens[len(begun) : SIZE])
        return [] if only_removes else None

    def _unlisted(self, request: Map) -> Map | None:
        """The event of a request that the recording left out, where the next batch is its."""
        stored = self._next_stored(self.at)
        new = new_blocks(request)
        return stored if stored is not None and new and stored["token_ids"] != new else None

    def _play_unlisted(self, event: Map) -> None:
        adapter = Adapter("tiny-lora", 1) if event["lora_name"] else None
        last = event["block_hashes"][-1]
        self._run(self._chains.tokens(last), adapter, self._chains.salt(last), None)


def new_blocks(request: Map | None) -> list[int] | None:
    """The tokens of the blocks that a request stores, by what the engine says it reused."""
    if request is None:
        return None
    tokens = request["token_ids"]
    return list(tokens[request["cached_tokens"] : len(tokens) // SIZE * SIZE])


def play_all(unhashed_first: bool) -> tuple[list[int], TruthPlayer]:
    """Play the whole recording; what was reused, request by request."""
    requests, frames = recorded("0.32-truth/requests"), recorded("0.32-truth/frames")
    player = TruthPlayer(frames, unhashed_first)
    pairs = zip(requests, [*requests[1:], None], strict=True)
    return [player.play(request, following) for request, following in pairs], player


def test_the_block_manager_reuses_stores_and_evicts_what_the_real_engine_did() -> None:
    cached, player = play_all(unhashed_first=True)
    requests = recorded("0.32-truth/requests")
    assert cached == [request["cached_tokens"] for request in requests]
    assert len(cached) == 398
    assert player.at == len(player.batches) == 733


def test_the_order_of_eviction_before_0_24_is_not_that_of_0_32() -> None:
    with pytest.raises(AssertionError):
        play_all(unhashed_first=False)
