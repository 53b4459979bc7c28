"""Three recordings of one scenario, in three encodings, against what the engine announced.

They carry no `cached_tokens`: what an engine reused shows in what it does not store again. Each
step of the scenario is either used, with the token ids of `/tokenize`, `/render` or the request
itself, or named below with the reason why it cannot be.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from aibrix_extproc.index.reference import PrefixIndex
from tests.backends import NewIndex
from tests.recordings import END_OF_REPLAY, payload_of, recorded, sequence_of

BLOCK_SIZE = 32
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")

FULL_REPORT = "04_report_full"
USED = [
    "01_short",
    "02_long",
    "03_same_again",
    "05_shared_prefix",
    "06_decode",
    "07_chat",
    "08_chat2",
    "09_tools",
    "10_turn2",
    "11_continue",
    "13_salt",
    "13_salt_again",
    "14_lora",
    "15_ids",
    "31_after_evict",
    "42_after_reset",
]
"""Steps whose prediction is compared."""

TOKENS_UNKNOWN = "nobody tokenized its prompt"
UNUSED = {
    FULL_REPORT: "asks for the full report: the engine announces its hits again",
    "10_turn1": TOKENS_UNKNOWN,
    "15_batch": TOKENS_UNKNOWN,
    "16_session": TOKENS_UNKNOWN,
    **{f"17_dup{i}": "four at once, and " + TOKENS_UNKNOWN for i in range(4)},
    "19_responses": TOKENS_UNKNOWN,
    "19_messages": TOKENS_UNKNOWN,
    **{f"30_evict{i}": TOKENS_UNKNOWN for i in range(14)},
    "41_after_reset_short": "right after a reset, whose event comes with this step",
    "51_after_wake": "right after a wake, whose event comes with this step",
    "53_after_resume": "right after a resume, whose event comes with this step",
}
SALT_NOT_ON_THE_WIRE = ("13_salt", "13_salt_again")
"""vLLM 0.10.2 hashes a salt and does not announce it."""


@dataclass(frozen=True)
class Scenario:
    name: str
    frames: list[dict[str, Any]] = field(repr=False)
    calls: list[dict[str, Any]] = field(repr=False)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The calls that made the engine generate, in the order in which they were sent."""
        steps = [c for c in self.calls if c.get("path") in GENERATING and c["status"] == 200]
        return sorted(steps, key=lambda call: call["t0"])

    def index(self, new_index: NewIndex) -> tuple[PrefixIndex, int]:
        """0.10.2 names adapters by their id alone: somebody has to say what 1 means."""
        index = new_index()
        if self.name.startswith("0.10"):
            return index, index.add_source("tiny", lora_id=1, lora_name="tiny-lora")
        return index, index.add_source("tiny")


def load(name: str) -> Scenario:
    return Scenario(name, recorded(f"{name}/frames"), recorded(f"{name}/http"))


SCENARIOS = [load(n) for n in ("0.32-map-u64", "0.32-map-bytes32", "0.10.2-array-emulated")]
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)


def prompt_of(body: dict[str, Any]) -> str:
    """What decides a body's tokens, as a key: the same for /tokenize, /render and the step."""
    if "messages" in body:
        names = ("messages", "tools", "continue_final_message")
        return json.dumps([*(body.get(n) for n in names), body.get("add_generation_prompt", True)])
    return json.dumps(body.get("prompt"))


def known_tokens(scenario: Scenario) -> dict[str, list[int]]:
    """Prompt → token ids, from /tokenize and /render."""
    known = {}
    for call in scenario.calls:
        if call.get("status") != 200 or not call.get("request"):
            continue
        if call["path"] == "/tokenize" and call["request"].get("add_special_tokens", True):
            known[prompt_of(call["request"])] = call["response"]["tokens"]
        elif call["path"].endswith("/render"):
            reply = call["response"]
            reply = reply[0] if isinstance(reply, list) else reply
            known[prompt_of(call["request"])] = reply["token_ids"]
    return known


def tokens_of(step: dict[str, Any], known: dict[str, list[int]]) -> list[int] | None:
    body = step["request"]
    if step["path"] not in ("/v1/completions", "/v1/chat/completions"):
        return None
    prompt = body.get("prompt")
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        return prompt
    return known.get(prompt_of(body))


def stored_tokens(frames: list[dict[str, Any]]) -> list[int]:
    """The tokens of all BlockStored events in these frames, one after another."""
    tokens: list[int] = []
    for frame in frames:
        for event in msgspec.msgpack.decode(payload_of(frame))[1]:
            if isinstance(event, dict):
                tokens += event["token_ids"] if event["type"] == "BlockStored" else []
            elif event[0] == "BlockStored":
                tokens += event[3]
    return tokens


def reused_blocks(tokens: list[int], announced: list[int]) -> int:
    """Full blocks of the prompt that the engine did not store: its first ones, as many as the
    announcement leaves out."""
    full = len(tokens) // BLOCK_SIZE
    for reused in range(full + 1):
        rest = tokens[reused * BLOCK_SIZE : full * BLOCK_SIZE]
        if announced[: len(rest)] == rest:
            return reused
    raise AssertionError("unreachable: an empty rest is always announced")


@dataclass(frozen=True)
class Outcome:
    predicted: int
    reused: int


def run(
    scenario: Scenario, new_index: NewIndex, leave_out_the_report: bool = True
) -> dict[str, Outcome]:
    """Feed the frames in order; for each step with known tokens, both counts of blocks."""
    index, source = scenario.index(new_index)
    known = known_tokens(scenario)
    steps = scenario.steps
    outcomes = {}
    for number, step in enumerate(steps):
        start = step["t0"]
        end = steps[number + 1]["t0"] if number + 1 < len(steps) else float("inf")
        of_step = [frame for frame in scenario.frames if start < frame["t"] <= end]
        tokens = tokens_of(step, known)
        if tokens is not None:
            body = step["request"]
            lora = None if body["model"] == "tiny" else body["model"]
            salt = body.get("cache_salt")
            depth = index.match("tiny", tokens, lora=lora, cache_salt=salt).get(source, 0)
            predicted = min(depth, (len(tokens) - 1) // BLOCK_SIZE)
            reused = reused_blocks(tokens, stored_tokens(of_step))
            outcomes[step["step"]] = Outcome(predicted, reused)
        if step["step"] == FULL_REPORT and leave_out_the_report:
            continue
        for frame in of_step:
            assert not index.apply(source, payload_of(frame)).skipped
    return outcomes


@each_scenario
def test_every_step_is_used_or_has_a_reason(scenario: Scenario) -> None:
    names = [step["step"] for step in scenario.steps]
    assert set(names) <= {*USED, *UNUSED}
    assert set(USED) <= set(names)
    known = known_tokens(scenario)
    unknown = {s["step"] for s in scenario.steps if tokens_of(s, known) is None}
    assert unknown == set(names) & {n for n, why in UNUSED.items() if TOKENS_UNKNOWN in why} | {
        "41_after_reset_short"
    }


@each_scenario
def test_what_the_engine_does_not_store_again_was_predicted(
    scenario: Scenario, new_index: NewIndex
) -> None:
    outcomes = run(scenario, new_index)
    left_out = SALT_NOT_ON_THE_WIRE if scenario.name.startswith("0.10") else ()
    compared = {name: outcomes[name] for name in USED if name not in left_out}
    wrong = {
        name: outcome for name, outcome in compared.items() if outcome.predicted != outcome.reused
    }
    assert not wrong
    assert sum(outcome.reused > 0 for outcome in compared.values()) >= 4


@each_scenario
def test_nothing_is_skipped_lost_or_parked(scenario: Scenario, new_index: NewIndex) -> None:
    index, source = scenario.index(new_index)
    for frame in scenario.frames:
        applied = index.apply(source, payload_of(frame))
        assert not applied.skipped
        assert not applied.lossy
        assert not applied.parked
        assert applied.timestamp == pytest.approx(frame["t"], abs=1)


@each_scenario
def test_a_full_report_inflates_copies_until_the_cache_is_cleared(
    scenario: Scenario, new_index: NewIndex
) -> None:
    """The known limit: the engine evicts once what it announced twice."""
    misled = run(scenario, new_index, leave_out_the_report=False)
    assert misled["31_after_evict"] == Outcome(predicted=5, reused=0)
    assert misled["42_after_reset"] == Outcome(predicted=0, reused=0)


def test_without_the_adapters_name_an_old_engines_adapter_matches_nothing(
    new_index: NewIndex,
) -> None:
    scenario = SCENARIOS[2]
    index = new_index()
    source = index.add_source("tiny")
    skipped = [index.apply(source, payload_of(f)).skipped for f in scenario.frames]
    assert {"unnamed_adapter": 1} in skipped
    step = next(s for s in scenario.steps if s["step"] == "14_lora")
    tokens = tokens_of(step, known_tokens(scenario))
    assert tokens is not None
    assert not index.match("tiny", tokens, lora="tiny-lora")


def test_an_old_engines_salted_blocks_are_taken_for_unsalted_ones(new_index: NewIndex) -> None:
    """The known limit: 0.10.2 does not announce the salt, so a salted request is not predicted,
    and its blocks count as a second hash of the unsalted ones."""
    outcomes = run(SCENARIOS[2], new_index)
    assert outcomes["13_salt_again"] == Outcome(predicted=0, reused=5)


@pytest.mark.parametrize("name", ["0.32-map-u64", "0.10.2-array-emulated"])
def test_a_replay_from_the_start_gives_the_same_index(name: str, new_index: NewIndex) -> None:
    scenario = load(name)
    messages = [f for f in recorded(f"{name}/replay") if f["src"] == "replay_from_0"]
    replay = [f for f in messages if sequence_of(f) != END_OF_REPLAY]
    assert [payload_of(f) for f in replay] == [payload_of(f) for f in scenario.frames]
    live, replayed = scenario.index(new_index), scenario.index(new_index)
    for (index, source), frames in ((live, scenario.frames), (replayed, replay)):
        for frame in frames:
            index.apply(source, payload_of(frame))
    assert live[0].stats() == replayed[0].stats()
