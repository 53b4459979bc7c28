"""A claimed prefix is a true prefix of the real tokens, whatever the template does."""

import json
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibrix_extproc.extproc.openai import parse_body
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.tokenizer.conversations import MARGIN_TOKENS, Claim, Conversations
from aibrix_extproc.tokenizer.outline import outline
from aibrix_extproc.tokenizer.trust import DISTRUST_S, PROOFS, Trust
from tests.unit.tokenizer import hostile_templates as hostile
from tests.unit.tokenizer.hostile_templates import Template, encode

SYSTEM = {"role": "system", "content": "you are kind and helpful. " * 8 + "answer"}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def question(name: str, turn: int) -> dict[str, Any]:
    """A turn of a conversation; no two turns end with the same words."""
    return user(f"{name} asks for the thing and for no other but {name}{turn}")


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def prompt_of(body: dict[str, Any]) -> Prompt:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    prompt = parse_body(path, json.dumps({"model": "m", **body}).encode()).prompt
    assert prompt is not None
    return prompt


class Engine:
    """Claims of prompts, each compared with what a template and a tokenizer make of it."""

    def __init__(self, template: Template, limit_bytes: int = 1 << 24) -> None:
        self.template = template
        self.memory = Conversations(limit_bytes)
        self.now = 0.0

    def tokens(self, body: dict[str, Any]) -> "array[int]":
        if "messages" in body:
            return encode(self.template(body))
        return encode([hostile.BOS, body["prompt"]])

    def claim(self, body: dict[str, Any]) -> Claim | None:
        sketch = outline(prompt_of(body))
        return self.memory.claim(sketch, self.now) if sketch is not None else None

    def send(self, body: dict[str, Any], must_hold: bool = True) -> int:
        """Tokens that were known of a prompt before it was tokenized; then it is learned."""
        self.now += 1.0
        claim, ids = self.claim(body), self.tokens(body)
        known = len(claim.ids) if claim is not None else 0
        if must_hold and claim is not None:
            assert claim.ids == ids[:known]
        sketch = outline(prompt_of(body))
        if sketch is not None:
            right = self.memory.learn(sketch, ids, self.now, claim)
            assert right == (claim is None or claim.ids == ids[:known])
        return known

    def chat(self, *messages: dict[str, Any], **more: Any) -> int:
        return self.send({"messages": list(messages), **more})

    def talk(self, name: str, turns: int, *before: dict[str, Any], **more: Any) -> list[int]:
        """A conversation of so many turns: what was known at each."""
        messages, known = list(before), []
        for turn in range(turns):
            messages.append(question(name, turn))
            known.append(self.send({"messages": list(messages), **more}))
            messages.append(answer(f"{name} is told of {turn} and of the rest"))
        return known


# -- what is known ------------------------------------------------------------------------------


def test_a_conversation_is_known_to_its_last_turn_once_the_template_has_proofs() -> None:
    engine = Engine(hostile.usual)
    first = engine.talk("ann", PROOFS + 2, SYSTEM)
    assert first[0] == first[1] == 0
    second = engine.talk("bob", 4, SYSTEM)
    messages = [SYSTEM, question("bob", 0)]
    assert second[1] == len(engine.tokens({"messages": messages})) - MARGIN_TOKENS


def test_a_system_prompt_is_known_to_a_new_conversation() -> None:
    engine = Engine(hostile.usual)
    engine.chat(SYSTEM, user("one question"))
    assert engine.chat(SYSTEM, user("another question")) == 0
    whole = len(encode([SYSTEM["content"]]))
    assert whole - 2 * MARGIN_TOKENS < engine.chat(SYSTEM, user("something else")) <= whole + 8


def test_what_two_conversations_begin_with_by_chance_is_not_claimed_of_a_third() -> None:
    engine = Engine(hostile.usual)
    engine.chat(SYSTEM, user("tell me all that you know of the moon"))
    engine.chat(SYSTEM, user("tell me all that you know of the mountains"))
    engine.chat(SYSTEM, user("no"))


def test_a_document_within_a_message_is_known_to_the_next_question_about_it() -> None:
    engine = Engine(hostile.usual)
    document = "the document says an and the " * 200
    for number in ("one", "two", "six"):
        known = engine.chat(user(f"{document} question {number}"))
    assert known > 0.8 * len(encode([document]))


def test_other_prompts_do_not_make_a_document_less_known_and_the_share_is_as_known() -> None:
    engine = Engine(hostile.usual)
    document = "the document says an and the " * 60
    engine.send({"prompt": document + "one"})
    engine.send({"prompt": document + "two"})
    engine.send({"prompt": "and now for what is not the same at all"})
    body = {"prompt": document + "six and all of the others too"}
    claim, real = engine.claim(body), len(engine.tokens(body))
    assert claim is not None
    assert len(claim.ids) > 0.8 * real
    assert abs(claim.share - len(claim.ids) / real) < 0.05
    body = {"prompt": document[:1600] + "another document that goes on for long " * 80}
    claim, real = engine.claim(body), len(engine.tokens(body))
    assert claim is not None
    assert claim.share < 0.4


def test_a_growing_text_prompt_is_known_once_the_tokenizer_has_proofs() -> None:
    engine = Engine(hostile.usual)
    for name in ("ann", "bob", "cid"):
        engine.send({"prompt": f"{name} said to the others"})
        engine.send({"prompt": f"{name} said to the others that an end is near"})
    text = "dan said to the others that the end of the things is near " * 3
    engine.send({"prompt": text.strip()})
    assert engine.send({"prompt": text + "and then"}) > len(encode([text])) - 2 * MARGIN_TOKENS


def test_the_share_does_not_count_the_answer_to_what_is_known() -> None:
    engine = Engine(hostile.usual)
    engine.talk("ann", PROOFS + 2, SYSTEM)
    asked = user("where is the end of it? " * 20 + "say")
    engine.chat(SYSTEM, asked)
    claim = engine.claim({"messages": [SYSTEM, asked, answer("here " * 400), user("and?")]})
    assert claim is not None
    assert claim.share > 0.8
    assert claim.estimated_tokens > 2 * len(claim.ids)


def test_nothing_is_known_across_models_tools_or_template_arguments() -> None:
    engine = Engine(hostile.usual)
    engine.talk("ann", PROOFS + 2, SYSTEM)
    messages = [SYSTEM, question("ann", 0), answer("x"), user("y")]
    assert engine.claim({"messages": messages}) is not None
    for other in (
        {"tools": TOOLS},
        {"chat_template_kwargs": {"a": 1}},
        {"model": "other"},
        {"add_generation_prompt": False},
        {"truncate_prompt_tokens": 100},
    ):
        assert engine.claim({"messages": messages, **other}) is None
    assert engine.claim({"messages": messages, "temperature": 0.5}) is not None


def test_with_no_bytes_nothing_is_kept() -> None:
    engine = Engine(hostile.usual, limit_bytes=0)
    assert engine.talk("ann", 8) == [0] * 8
    assert engine.memory.size_bytes == 0


def test_the_size_stays_within_its_limit_and_what_was_used_last_stays() -> None:
    engine = Engine(hostile.usual, limit_bytes=60_000)
    for name in range(40):
        engine.talk(f"n{name}", 4, SYSTEM)
        assert engine.memory.size_bytes <= 60_000
    assert engine.talk("last", 4, SYSTEM)[1] > 0


def test_turns_of_one_conversation_keep_their_ids_once() -> None:
    engine = Engine(hostile.usual)
    engine.talk("ann", 4)
    before = engine.memory.size_bytes
    document = user("the document says an and the " * 500 + "end")
    messages = [document]
    for turn in range(6):
        engine.chat(*messages)
        messages += [answer(f"a {turn}"), user(f"u {turn}")]
    text_bytes, ids_bytes = 15_000, 4 * len(engine.tokens({"messages": messages}))
    assert engine.memory.size_bytes - before < 1.5 * (text_bytes + ids_bytes)


# -- templates that do more than append -----------------------------------------------------------


def test_a_generation_prompt_is_taken_off() -> None:
    engine = Engine(hostile.long_generation_prompt)
    engine.talk("ann", PROOFS + 2, SYSTEM)
    assert engine.talk("bob", 3, SYSTEM)[2] > 0


def test_tools_in_the_last_user_message_are_never_believed_to_stay() -> None:
    engine = Engine(hostile.tools_in_last_user)
    for name in ("ann", "bob", "cid"):
        engine.talk(name, 6, SYSTEM, tools=TOOLS)


def test_reasoning_that_is_dropped_later_is_not_claimed() -> None:
    engine = Engine(hostile.drops_reasoning)
    for name in ("ann", "bob", "cid", "dan"):
        call = answer("look", reasoning_content=f"{name} wants the thing and I must look")
        result = {"role": "tool", "content": f"the result for {name}"}
        start = [SYSTEM, user(f"{name} asks")]
        engine.chat(*start)
        engine.chat(*start, call, result)
        engine.chat(*start, call, result, answer("it is so"), user(f"{name} again"))


def test_reasoning_is_not_claimed_though_conversations_without_it_only_appended() -> None:
    engine = Engine(hostile.drops_reasoning)
    for name, thought in (("a", ""), ("b", ""), ("c", ""), ("d", ""), ("e", "must look " * 20)):
        call = answer("look", reasoning_content=thought)
        chat = [user(f"{name} asks"), call, {"role": "tool", "content": f"result {name}"}]
        engine.chat(*chat)
        engine.chat(*chat, answer("it is so"), user(f"{name} again"))


def test_a_prompt_that_ends_as_no_proof_did_is_left_alone() -> None:
    engine = Engine(hostile.switches)
    for name in ("ann", "bob"):
        engine.talk(name, PROOFS, SYSTEM)
    engine.chat(SYSTEM, user("the quick fox"))
    engine.chat(SYSTEM, user("the quick fox"), answer("runs"), user("why"))
    assert engine.talk("cid", 3, SYSTEM)[2] > 0


def test_fields_that_a_template_may_show_are_part_of_the_message() -> None:
    engine = Engine(hostile.shows_names)
    for name in ("ann", "bob", "cid and a long name of all things that there are"):
        engine.chat({**SYSTEM, "name": name}, user(f"hello {name}"))
        engine.chat({**SYSTEM, "name": name}, user("an end"))


def test_prompts_that_contradict_each_other_bound_the_claim() -> None:
    template = hostile.Dated()
    engine = Engine(template)
    engine.chat(SYSTEM, user("the one"))
    template.date = "tuesday"
    engine.chat(SYSTEM, user("an other"))
    engine.chat(SYSTEM, user("hello"))
    template.date = "monday"
    assert engine.chat(SYSTEM, user("ab")) == 0


def test_a_failed_proof_ends_belief_for_a_while() -> None:
    ids, trust = array("I", range(64)), Trust()
    for message in range(PROOFS):
        assert trust.not_kept(ids, 0.0) is None
        assert trust.observe(ids, 2, message, 0.0)
    assert trust.not_kept(ids, 0.0) == 2
    assert not trust.observe(array("I", range(1, 65)), 3, 9, 1.0)
    for message in range(PROOFS):
        trust.observe(ids, 2, message, DISTRUST_S)
    assert trust.not_kept(ids, DISTRUST_S) is None
    for message in range(PROOFS):
        trust.observe(ids, 2, message, DISTRUST_S + 2)
    assert trust.not_kept(ids, DISTRUST_S + 2) == 2


def test_one_message_sent_again_and_again_is_one_proof() -> None:
    trust = Trust()
    for _ in range(PROOFS + 1):
        trust.observe(array("I", range(64)), 0, 7, 0.0)
    assert not trust.is_believed(0.0)


def test_a_count_in_the_header_is_not_claimed_of_another_count() -> None:
    engine = Engine(hostile.counts_messages)
    for name in ("ann", "bob", "cid"):
        engine.talk(name, 5, SYSTEM)


def test_what_no_template_shows_is_no_evidence() -> None:
    engine = Engine(hostile.trims)
    for index in range(4):
        engine.chat({**user("the same long question of all of them"), "id": f"{index}"})
    engine.chat({**user("x"), "id": "9"})
    for space in ("", " ", "  "):
        engine.chat(user("a question" + space), answer("the same"), user(f"more {len(space)}"))
    engine.chat(user("a question or two"), answer("the same"), user("less"))


def test_a_wrong_claim_is_told_and_nothing_is_claimed_for_a_while() -> None:
    template = hostile.Dated()
    engine = Engine(template)
    engine.talk("ann", PROOFS + 2, SYSTEM)
    template.date = "tuesday"
    messages = [SYSTEM, question("ann", 0), answer("x"), user("y")]
    assert engine.send({"messages": messages}, must_hold=False) > 0
    assert engine.memory.size_bytes == 0
    assert engine.talk("bob", 8, SYSTEM) == [0] * 8
    engine.now += DISTRUST_S
    assert engine.talk("cid", PROOFS + 3, SYSTEM)[-1] > 0


# -- every template against random conversations ------------------------------------------------

WORDS = st.sampled_from(["the", "an", "a", "aba", "aaaa", "hello", "ab", "and", "é", "日本", "\n"])
TEXTS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=12).map(" ".join),
    st.lists(WORDS, min_size=1, max_size=6).map("".join),
    st.integers(5, 120).map(lambda n: "the hello and an aba " * n),
)
MESSAGES = st.one_of(
    TEXTS.map(user),
    TEXTS.map(answer),
    st.tuples(TEXTS, TEXTS).map(lambda t: answer(t[0], reasoning_content=t[1])),
    TEXTS.map(lambda text: {"role": "tool", "content": text}),
    st.tuples(TEXTS, st.integers(0, 3)).map(lambda t: {**user(t[0]), "id": t[1]}),
    st.tuples(TEXTS, TEXTS).map(lambda t: {**user(t[0]), "name": t[1]}),
    TEXTS.map(lambda text: user(f"quick {text}")),
    TEXTS.map(lambda text: {"role": "system", "content": text}),
)


@st.composite
def histories(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Chats, most of which go on from an earlier one or part from it somewhere."""
    chats: list[list[dict[str, Any]]] = [[user("the first"), *draw(st.lists(MESSAGES, max_size=2))]]
    for _ in range(draw(st.integers(2, 14))):
        base = draw(st.sampled_from(chats))
        keep = draw(st.one_of(st.just(len(base)), st.integers(0, len(base))))
        more = draw(st.lists(MESSAGES, min_size=1, max_size=3))
        chats.append([*base[:keep], *more])
    return chats


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    "template",
    [
        hostile.usual,
        hostile.long_generation_prompt,
        hostile.tools_in_last_user,
        hostile.drops_reasoning,
        hostile.counts_messages,
        hostile.trims,
        hostile.switches,
        hostile.shows_names,
        hostile.plain_turns,
    ],
    ids=lambda t: t.__name__,
)
@given(chats=histories())
@settings(max_examples=60, deadline=None)
def test_no_claim_is_ever_wrong(
    template: Template, tools: list[Any] | None, chats: list[list[dict[str, Any]]]
) -> None:
    engine = Engine(template)
    for name in ("ann", "bob"):
        engine.talk(name, 3, SYSTEM, tools=tools)
    for messages in chats:
        engine.chat(*messages, tools=tools)


@given(texts=st.lists(st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=4)))
@settings(max_examples=100, deadline=None)
def test_no_claim_of_a_text_is_ever_wrong(texts: list[list[tuple[str, bool]]]) -> None:
    engine = Engine(hostile.usual)
    for name in ("ann", "bob", "cid"):
        engine.send({"prompt": f"{name} said to"})
        engine.send({"prompt": f"{name} said to the others"})
    for parts in texts:
        text = ""
        for part, spaced in parts:
            text += (" " if spaced else "") + part
            engine.send({"prompt": text})
