"""The encoder writes, byte for byte, what each recorded version of vLLM wrote."""

from collections.abc import Iterator

import msgpack
import pytest

from aibrix_extproc.fakes.events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    Event,
    EventEncoder,
    parse_version,
)
from tests.recordings import payload_of, recorded

MATRIX = recorded("publisher_matrix")
VERSIONS = sorted({row["vllm"] for row in MATRIX}, key=parse_version)

TOKENS = [1, 2, 3, 4, 5, 6, 7, 8]
BATCHES: dict[int, list[Event]] = {
    0: [BlockStored([11, 2**64 - 1], None, TOKENS, 4)],
    1: [
        BlockStored(
            [-5, 12],
            11,
            TOKENS,
            4,
            lora_id=1,
            lora_name="ad",
            extra_keys=[None, None],
            group_idx=0,
            kv_cache_spec_kind="full_attention",
            session_id="s1",
        )
    ],
    2: [
        BlockStored([bytes(range(32))], bytes(32), [9] * 4, 4, extra_keys=[("salt",)], group_idx=0)
    ],
    3: [
        BlockStored(
            [13],
            None,
            [1, 2, 3, 4],
            4,
            extra_keys=[(("mm-abc", -2), "salt")],
            group_idx=1,
            kv_cache_spec_kind="sliding_window",
            kv_cache_spec_sliding_window=1024,
            lookahead_token_ids=[[5]],
        )
    ],
    4: [BlockRemoved([11], group_idx=0), BlockRemoved([12, 13], group_idx=0)],
    5: [AllBlocksCleared()],
    7: [AllBlocksCleared()],
}
"""What the recorded publishers were fed, by sequence."""


def recorded_batches(version: str) -> Iterator[tuple[int, bytes]]:
    """(sequence, payload) of each live batch of this version."""
    for row in MATRIX:
        if row["vllm"] == version and row["src"] == "live":
            _, sequence, payload = (bytes.fromhex(frame) for frame in row["frames_hex"])
            yield int.from_bytes(sequence, "big"), payload


def test_the_matrix_holds_thirty_versions() -> None:
    assert len(VERSIONS) == 30
    assert all(len(list(recorded_batches(version))) == len(BATCHES) for version in VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_events_become_the_same_bytes(version: str) -> None:
    encoder = EventEncoder(parse_version(version))
    for sequence, payload in recorded_batches(version):
        assert encoder.encode(1234.5, BATCHES[sequence]) == payload, sequence


def test_a_running_engine_s_payloads_come_out_as_they_went_in() -> None:
    encoder = EventEncoder((0, 32, 0))
    types = {"BlockStored": BlockStored, "BlockRemoved": BlockRemoved}
    count = 0
    for frame in recorded("0.32-map-u64/frames"):
        payload = payload_of(frame)
        timestamp, maps, rank = msgpack.unpackb(payload)
        events: list[Event] = []
        for fields in maps:
            tag = fields.pop("type")
            events.append(types[tag](**fields) if tag in types else AllBlocksCleared())
            count += 1
        assert rank == 0
        assert encoder.encode(timestamp, events) == payload
    assert count > 200


def test_the_rank_stands_in_every_batch_but_those_of_0_9_0() -> None:
    events: list[Event] = [AllBlocksCleared()]
    assert msgpack.unpackb(EventEncoder((0, 9, 0), rank=3).encode(1.0, events))[1:] == [
        [["AllBlocksCleared"]]
    ]
    assert msgpack.unpackb(EventEncoder((0, 32, 0), rank=3).encode(1.0, events))[2] == 3


def test_a_value_that_msgpack_cannot_hold_is_an_error() -> None:
    with pytest.raises(OverflowError):
        EventEncoder((0, 32, 0)).encode(1.0, [BlockRemoved([2**64])])


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.0", (0, 32, 0)), ("0.10.1.1.post2", (0, 10, 1)), ("0.24", (0, 24, 0))],
)
def test_a_version_is_its_first_three_numbers(text: str, version: tuple[int, int, int]) -> None:
    assert parse_version(text) == version


def test_a_version_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError):
        parse_version("latest")
