"""Reads the recordings of a real vLLM under tests/data/vllm, and those that `watch` made."""

import gzip
import json
from pathlib import Path
from typing import Any

from tests.support import data_path

END_OF_REPLAY = "f" * 16
"""The sequence of the message that ends a replay, in hex."""


def recorded(name: str) -> list[dict[str, Any]]:
    """The lines of a gzipped recording, e.g. `0.32-truth/frames`."""
    return lines_of(data_path(f"vllm/{name}.jsonl.gz"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a recording anywhere, gzipped or not."""
    reads = gzip.open if path.suffix == ".gz" else open
    with reads(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def payload_of(frame: dict[str, Any]) -> bytes:
    """The payload of a recorded message: the last of its frames, live or replayed."""
    return bytes.fromhex(frame["payload"] if "payload" in frame else frame["frames_hex"][-1])


def sequence_of(frame: dict[str, Any]) -> str:
    """The sequence of a recorded message in hex: before the payload, live or replayed."""
    sequence: str = frame["frames_hex"][-2]
    return sequence
