"""Hostile bytes: nothing makes `apply` raise, and nothing that was not said is ever a hit."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aibrix_extproc.index import LOSSES, SKIP_REASONS, Applied, PrefixIndex
from aibrix_extproc.index.keys import MAX_EXTRAS_NESTING
from tests.backends import NewIndex
from tests.events import TestEvent, batch, cleared, removed, stored
from tests.naive_index import NaiveIndex, Source

encode = msgspec.msgpack.encode
bounded = settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PROMPT = list(range(1, 13))
NEVER_SAID = [2**31 + n for n in range(12)]
"""Tokens so large that no flipped bit makes them of those that are sent."""
EVENTS: list[TestEvent] = [
    stored([1, 2, 3], PROMPT),
    stored([2**63, -5], PROMPT[:8], lora_name="ad", extra_keys=[["ad", "salt"], ["ad"]]),
    stored([b"\1" * 32], PROMPT[:4], parent=b"\2" * 32, medium="CPU"),
    stored([7], [7] * 4, extra_keys=[[["mm", -2], b"e", 1.5, None]], session_id="s"),
    stored([8], [8] * 4, group_idx=1, kv_cache_spec_kind="sliding_window"),
    stored([9], [9] * 4, lookahead_token_ids=[[5]]),
    removed([3]),
    removed([b"\1" * 32], medium="CPU", group_idx=0),
    cleared(),
]


class Target:
    """An index with a source that is attacked and one that must not notice."""

    def __init__(self, new_index: NewIndex) -> None:
        self.index: PrefixIndex = new_index(max_orphans=20)
        self.bystander = self.index.add_source("m")
        self.index.apply(self.bystander, batch(stored([1, 2], PROMPT[:8])))
        self.source = self.index.add_source("m")

    def attack(self, payload: bytes) -> Applied:
        applied = self.index.apply(self.source, payload)
        assert set(applied.skipped) <= set(SKIP_REASONS)
        assert applied.lossy == bool(LOSSES & set(applied.skipped))
        assert self.index.match("m", NEVER_SAID) == {}
        found = self.index.match("m", PROMPT[:8])
        assert found.pop(self.bystander) == 2
        assert not found or applied.stored
        self.index.clear_source(self.source)
        assert self.index.match("m", PROMPT) == {self.bystander: 2}
        return applied


@bounded
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_say_nothing(new_index: NewIndex, payloads: list[bytes]) -> None:
    target = Target(new_index)
    for payload in payloads:
        target.attack(payload)
        target.attack(b"\x93\xcb" + bytes(8) + payload)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A batch of an engine with a few bytes changed, put in, or cut away."""
    events = draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3))
    payload = bytearray(batch(*events))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(payload)))
        kind = draw(st.sampled_from(["change", "insert", "cut", "end"]))
        junk = draw(st.binary(min_size=1, max_size=3))
        if kind == "change":
            payload[at : at + len(junk)] = junk
        elif kind == "insert":
            payload[at:at] = junk
        elif kind == "cut":
            del payload[at : at + len(junk)]
        else:
            del payload[at:]
    return bytes(payload)


@bounded
@given(st.lists(damaged(), min_size=1, max_size=4))
def test_damaged_batches_never_raise_nor_reach_another_source(
    new_index: NewIndex, payloads: list[bytes]
) -> None:
    target = Target(new_index)
    for payload in payloads:
        target.attack(payload)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
@pytest.mark.parametrize("version", ["0.23", "0.33"])
def test_every_flipped_byte_of_an_event_is_survived(
    new_index: NewIndex, event: TestEvent, version: str
) -> None:
    too_new = ("session_id", "lookahead_token_ids") if version == "0.23" else ()
    fields = {name: value for name, value in event.fields.items() if name not in too_new}
    payload = batch(TestEvent(event.kind, fields), version=version)
    target = Target(new_index)
    for at in range(len(payload)):
        for flipped in (0x01, 0x80, 0xFF, 0x40):
            changed = bytes([payload[at] ^ flipped])
            target.attack(payload[:at] + changed + payload[at + 1 :])
        target.attack(payload[:at])


# -- values of any type in a field, against an oracle that checks types itself --------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, -(2**63)])
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


def is_int(value: Any) -> bool:
    return type(value) is int


def is_text(value: Any) -> bool:
    return type(value) is str


def is_hash(value: Any) -> bool:
    return is_int(value) or (type(value) is bytes and len(value) <= 64)


def a_list(of: Any) -> Any:
    return lambda value: type(value) is list and all(of(item) for item in value)


def optional(of: Any) -> Any:
    return lambda value: value is None or of(value)


def has_a_place_in_a_key(value: Any, nesting: int = MAX_EXTRAS_NESTING - 1) -> bool:
    if isinstance(value, list):
        return nesting > 0 and all(has_a_place_in_a_key(v, nesting - 1) for v in value)
    return isinstance(value, (type(None), bool, int, float, str, bytes))


CHECKS = {
    "block_hashes": a_list(is_hash),
    "parent_block_hash": optional(is_hash),
    "token_ids": a_list(is_int),
    "block_size": is_int,
    "lora_id": optional(is_int),
    "medium": optional(is_text),
    "lora_name": optional(is_text),
    "extra_keys": optional(a_list(optional(lambda value: type(value) is list))),
    "group_idx": optional(is_int),
    "kv_cache_spec_kind": optional(is_text),
    "lookahead_token_ids": optional(a_list(optional(lambda v: is_int(v) or a_list(is_int)(v)))),
    "cache_salt": optional(is_text),
}
FREE = ["kv_cache_spec_sliding_window", "locality", "ownership", "session_id", "new_field"]
REQUIRED = ("block_hashes", "parent_block_hash", "token_ids", "block_size")


def problem_of(event: dict[str, Any]) -> str | None:
    """Why the blocks of this event cannot be used, by the rules written down again."""
    if any(name not in event for name in REQUIRED):
        return "unreadable_stored"
    if any(name in event and not check(event[name]) for name, check in CHECKS.items()):
        return "unreadable_stored"
    blocks, size = len(event["block_hashes"]), event["block_size"]
    extras = event.get("extra_keys")
    if size < 1 or len(event["token_ids"]) != blocks * size:
        return "misfit"
    if extras is not None and len(extras) != blocks:
        return "misfit"
    if any(not 0 <= token < 2**32 for token in event["token_ids"]):
        return "misfit"
    if any(not has_a_place_in_a_key(value) for keys in extras or [] for value in keys or []):
        return "unreadable_stored"
    return None


@st.composite
def wrongly_typed(draw: st.DrawFn) -> dict[str, Any]:
    event: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": [1, 2],
        "parent_block_hash": None,
        "token_ids": PROMPT[:8],
        "block_size": 4,
    }
    for name in draw(st.lists(st.sampled_from([*CHECKS, *FREE]), min_size=1, max_size=2)):
        value = draw(VALUES | st.lists(st.lists(VALUES, max_size=2), min_size=2, max_size=2))
        if draw(st.integers(0, 9)):
            event[name] = value
        else:
            event.pop(name, None)
    return event


@bounded
@given(wrongly_typed())
def test_a_field_of_any_type_is_used_exactly_if_it_may_be(
    new_index: NewIndex, event: dict[str, Any]
) -> None:
    index = new_index()
    source = index.add_source("m")
    naive = NaiveIndex(100)
    naive.sources[source] = Source("m", None, None)
    plain = stored([5], [5] * 4, parent=1)
    applied = index.apply(source, batch(event, plain))
    problem = problem_of(event)
    if problem is None:
        said = naive.apply(source, [event])
        assert {k: v for k, v in applied.skipped.items() if k != "orphan_dropped"} == said.skipped
    else:
        assert applied.skipped == {problem: 1}
        assert applied.stored == 0
    assert not applied.lossy
    naive.apply(source, [{"type": "BlockStored"} | plain.fields])
    for prompt in (PROMPT, [*PROMPT[:4], 5, 5, 5, 5], [], [0] * 8):
        for lora in (None, "", "a"):
            for salt in (None, "a"):
                found = index.match("m", prompt, lora=lora, cache_salt=salt)
                assert found == naive.match("m", prompt, lora, salt)


@bounded
@given(st.dictionaries(st.sampled_from(["block_hashes", "medium", "group_idx", "new"]), VALUES))
def test_a_removal_is_applied_or_is_a_loss(new_index: NewIndex, fields: dict[str, Any]) -> None:
    index = new_index()
    source = index.add_source("m")
    index.apply(source, batch(stored([1, 2], PROMPT[:8])))
    applied = index.apply(source, batch({"type": "BlockRemoved"} | fields))
    readable = "block_hashes" in fields and all(
        CHECKS[name](value) for name, value in fields.items() if name in CHECKS
    )
    assert applied.lossy is not readable
    assert applied.skipped == ({} if readable else {"unreadable_removed": 1})
    on_the_gpu = readable and fields.get("medium") in (None, "GPU") and not fields.get("group_idx")
    gone = set(fields["block_hashes"]) & {1, 2} if on_the_gpu else set()
    depth = 0 if 1 in gone else 1 if 2 in gone else 2
    assert index.match("m", PROMPT) == ({source: depth} if depth else {})
