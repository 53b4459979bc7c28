"""The files that all peers read: W's messages, its removals, and the long prompts.

Prompts are those of `benchmarks.trials`: random tokens, each stored whole in four sources.
"""

import json
import random
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.messages import write_messages
from benchmarks.workload import VOCABULARY, Message, Workload, stored_chain

PROMPT_TOKENS: Final = (1024, 8192, 32768, 131072)
HOLDERS: Final = 4
SOURCES: Final = 100
SEQUENCES: Final = 2000


@dataclass(frozen=True, slots=True)
class Files:
    """Paths by shape, and how much is in them."""

    stored: dict[str, str]
    """Events per message, as text → a file of BlockStored messages."""
    removed: str
    chains: str
    """BlockStored messages of the long prompts."""
    prompts: str
    """JSON: a list of token ids for each of PROMPT_TOKENS."""
    sources: int
    blocks: int
    events: int
    chain_blocks: int

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def load(path: str) -> Files:
    return Files(**json.loads(Path(path).read_text()))


def write(directory: Path) -> Files:
    workload = Workload(SOURCES, SEQUENCES, shared_hashes=True)
    stored = {str(events): str(directory / f"stored-{events}") for events in (16, 1)}
    for events, path in stored.items():
        messages = workload.messages(events_per_message=int(events), arrays=False)
        write_messages(Path(path), messages)
    removed, chains, prompts = (str(directory / n) for n in ("removed", "chains", "prompts"))
    write_messages(Path(removed), workload.removals())
    rng = random.Random(7)
    long_prompts = [rng.choices(range(VOCABULARY), k=tokens) for tokens in PROMPT_TOKENS]
    Path(prompts).write_text(json.dumps(long_prompts))
    chain_messages: list[Message] = [
        (source, payload)
        for prompt in long_prompts
        for source in range(HOLDERS)
        for payload in stored_chain(1000 + len(prompt), 0, array("I", prompt))
    ]
    write_messages(Path(chains), iter(chain_messages))
    sizes = [len(event.hashes) for event in workload.events()]
    return Files(stored, removed, chains, prompts, SOURCES, sum(sizes), len(sizes),
                 HOLDERS * sum(PROMPT_TOKENS) // 16)  # fmt: skip
