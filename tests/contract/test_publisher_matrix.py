"""What the publishers of 30 vLLM versions really send, decoded event by event."""

from collections import defaultdict
from typing import Any

import msgspec
import pytest

from aibrix_extproc.index.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    decode_batch,
)
from tests.backends import NewIndex
from tests.recordings import END_OF_REPLAY, payload_of, recorded, sequence_of

LIVE: dict[str, list[dict[str, Any]]] = defaultdict(list)
REPLAYED: dict[str, list[dict[str, Any]]] = defaultdict(list)
for _row in recorded("publisher_matrix"):
    (LIVE if _row["src"] == "live" else REPLAYED)[_row["vllm"]].append(_row)

VERSIONS = list(LIVE)
each_version = pytest.mark.parametrize("version", VERSIONS)

STORED_FIELDS = [field.name for field in msgspec.structs.fields(BlockStored)]
STORED_FIELDS.remove("cache_salt")  # SGLang's alone
FIELDS = {
    "BlockStored": STORED_FIELDS,
    "BlockRemoved": ["block_hashes", "medium", "group_idx"],
    "AllBlocksCleared": [],
}
KINDS = {
    "BlockStored": BlockStored,
    "BlockRemoved": BlockRemoved,
    "AllBlocksCleared": AllBlocksCleared,
}


def version_number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def plain(value: Any) -> Any:
    """The recording's own form of a value: bytes as {"_hex": …}."""
    if isinstance(value, bytes):
        return {"_hex": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def expected_fields(event: Any) -> tuple[str, dict[str, Any]]:
    """Kind and fields of an event as msgpack alone decodes it; absent fields are None."""
    if isinstance(event, dict):
        kind, named = event["type"], event
    else:
        kind = event[0]
        named = dict(zip(FIELDS[kind], event[1:], strict=False))
    return kind, {name: named.get(name) for name in FIELDS[kind]}


def is_same(event: Event, recorded_event: Any) -> bool:
    kind, fields = expected_fields(recorded_event)
    found = {name: plain(getattr(event, name)) for name in FIELDS[kind]}
    return isinstance(event, KINDS[kind]) and found == fields


def test_there_are_thirty_versions_in_two_encodings() -> None:
    assert len(VERSIONS) == 30
    encodings = {v: type(LIVE[v][0]["decoded"][1][0]) for v in VERSIONS}
    assert {v for v, kind in encodings.items() if kind is dict} == {
        v for v in VERSIONS if version_number(v) >= (0, 24)
    }


@each_version
def test_every_event_decodes_field_by_field(version: str) -> None:
    assert len(LIVE[version]) == 7
    for frame in LIVE[version]:
        batch = decode_batch(payload_of(frame))
        ts, events = frame["decoded"][:2]
        assert batch.timestamp == ts
        assert len(batch.events) == len(events)
        for found, wanted in zip(batch.events, events, strict=True):
            assert is_same(found, wanted)


@each_version
def test_live_and_replayed_messages_agree(version: str) -> None:
    """A reply has a topic from 0.26 on; read from the right it is the same everywhere."""
    live = {sequence_of(frame): payload_of(frame) for frame in LIVE[version]}
    *replayed, end = REPLAYED[version]
    assert {len(frame["frames_hex"]) for frame in replayed} == (
        {4} if version_number(version) >= (0, 26) else {3}
    )
    assert sequence_of(end) == END_OF_REPLAY
    assert {sequence_of(f): payload_of(f) for f in replayed} == {
        sequence: payload for sequence, payload in live.items() if int(sequence, 16) >= 3
    }
    assert [int(sequence, 16) for sequence in live] == [0, 1, 2, 3, 4, 5, 7]


@each_version
def test_every_version_is_indexed_as_far_as_it_should(version: str, new_index: NewIndex) -> None:
    index = new_index()
    source = index.add_source("m", lora_id=1, lora_name="ad")
    applied = [index.apply(source, payload_of(frame)) for frame in LIVE[version]]
    assert not any(a.lossy for a in applied)
    # 0: two blocks. 1: two blocks of adapter "ad" (before 0.14: id 1). 2: its parent is unknown.
    # 3: from 0.20 on of group 1, which is not indexed: without a kind, or a sliding window.
    in_a_group = version_number(version) >= (0, 20)
    assert [a.stored for a in applied] == [2, 2, 0, 0 if in_a_group else 1, 0, 0, 0]
    assert [a.parked for a in applied] == [0, 0, 1, 0, 0, 0, 0]
    assert applied[3].skipped == ({"group_not_indexed": 1} if in_a_group else {})
    assert [sum(a.skipped.values()) for a in applied] == [0, 0, 0, int(in_a_group), 0, 0, 0]
    # 4: 11, 12 and 13 go, as far as they are held; 5 and 7 clear what is left.
    assert applied[4].removed == (2 if in_a_group else 3)
    assert [a.cleared for a in applied] == [0, 0, 0, 0, 0, 1, 1]
    stats = index.stats()
    assert (stats.placements, stats.orphans, stats.bytes) == (0, 0, 0)


@each_version
def test_a_request_finds_what_the_first_batches_announced(
    version: str, new_index: NewIndex
) -> None:
    index = new_index()
    source = index.add_source("m", lora_id=1, lora_name="ad")
    index.apply(source, payload_of(LIVE[version][0]))
    prompt = list(range(1, 9))
    assert index.match("m", [*prompt, 9]) == {source: 2}
    assert index.match("m", prompt, lora="ad") == {}
    assert index.block_size(source) == 4
