"""The fake engine beside a real vLLM 0.32.0: the same requests give the same events.

The scenario of a recording is sent over HTTP, step by step, to a fake engine that has the real
one's tokens.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import aiohttp

from aibrix_extproc.fakes.config import EngineConfig
from aibrix_extproc.fakes.engine import FakeEngine
from aibrix_extproc.fakes.events import Event, EventEncoder
from aibrix_extproc.fakes.publisher import EventPublisher
from aibrix_extproc.fakes.tokenizer import ChatPrompt
from tests.contract.event_pairs import SIZE, UNKNOWN, Chains, Map, Pairs, events_of
from tests.recordings import payload_of, recorded
from tests.support import eventually_async

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
