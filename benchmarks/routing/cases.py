"""What the study runs: traffic, pods and engines, by name and by set.

Three sets. A default was chosen on `training`, and frozen; then it was judged on `held-out`, whose
shapes, numbers of pods and seeds are others, and on `perturbed`, whose engines are others too.
`light` is traffic so thin that no strategy queues: it was looked at, and decides nothing.

Rates are absolute, in sessions a second, between the rate at which round robin begins to queue and
the one at which the best begins to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from aibrix_extproc.simulate.engine import EngineShape
from aibrix_extproc.simulate.timing import Polynomial
from aibrix_extproc.workloads.generated import (
    PRESETS,
    Shape,
    agent,
    multi_turn,
    shared_prefix,
    unique,
)
from aibrix_extproc.workloads.jitter import jittered
from aibrix_extproc.workloads.mooncake import mooncake
from aibrix_extproc.workloads.sessions import Session

_TIME: Final = Polynomial()

Traffic = Callable[[int, Path], Sequence[Session]]
"""From a seed, and the folder of the traces."""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: all strategies have the same sessions for the same seed."""

    name: str
    set: str
    pods: int
    traffic: Traffic
    blocks: int = 16_384
    """KV cache of a pod, in blocks of 64 tokens."""
    time: Polynomial = _TIME
    slow_pods: int = 0
    """So many pods take half as long again for each step."""

    @property
    def shape(self) -> EngineShape:
        return EngineShape(blocks=self.blocks)

    @property
    def times(self) -> tuple[Polynomial, ...]:
        slow = replace(
            self.time,
            prefill_scale=1.5 * self.time.prefill_scale,
            decode_scale=1.5 * self.time.decode_scale,
        )
        return (slow,) * self.slow_pods + (self.time,) * (self.pods - self.slow_pods)


def _made(generate: Callable[[Shape, int], list[Session]], shape: Shape) -> Traffic:
    return lambda seed, traces: generate(shape, seed)


def _trace(file: str, speed: float, first: int, last: int, size: int) -> Traffic:
    """`size` requests of a window within the lines `first` to `last`, which moves with the seed;
    each up to 3 s later, the tick of the trace's clock."""
    return partial(_window, file, speed, first, last, size)


def _window(
    file: str, speed: float, first: int, last: int, size: int, seed: int, traces: Path
) -> Sequence[Session]:
    places = max(1, last - first - size)
    begin = first + (seed * 977) % places
    window = mooncake(traces / file, speed)[begin : begin + size]
    start_s = window[0].start_s
    moved = [replace(session, start_s=session.start_s - start_s) for session in window]
    return jittered(moved, 3.0 / speed, seed)


_CONVERSATION: Final = "conversation_trace.jsonl"
_SYNTHETIC: Final = "synthetic_trace.jsonl"

_TRAINING: Final = (
    Case("conversation × 3", "training", 8, _trace(_CONVERSATION, 3.0, 0, 5000, 1500)),
    Case("synthetic", "training", 8, _trace(_SYNTHETIC, 1.0, 0, 2000, 1200)),
    Case(
        "b2b-saas",
        "training",
        4,
        _made(shared_prefix, Shape(sessions=900, rate=9.0)),
    ),
    Case(
        "documents, small cache",
        "training",
        4,
        _made(
            shared_prefix,
            Shape(
                sessions=1200,
                rate=20.0,
                groups=30,
                prefix_tokens=8000,
                turn_tokens=300,
                output_tokens=100,
            ),
        ),
        blocks=2048,
    ),
    Case(
        "multi-turn",
        "training",
        4,
        _made(
            multi_turn,
            Shape(
                sessions=500,
                rate=12.0,
                groups=20,
                prefix_tokens=1000,
                turn_tokens=300,
                output_tokens=200,
                turns=6,
            ),
        ),
        blocks=8192,
    ),
    Case(
        "agent",
        "training",
        4,
        _made(
            agent,
            Shape(
                sessions=160,
                rate=2.5,
                groups=10,
                prefix_tokens=3000,
                turn_tokens=800,
                output_tokens=100,
                turns=10,
                think_s=2.0,
            ),
        ),
        blocks=4096,
    ),
    Case(
        "unique",
        "training",
        4,
        _made(
            unique,
            Shape(
                sessions=1500, rate=28.0, prefix_tokens=3000, turn_tokens=1000, output_tokens=200
            ),
        ),
    ),
)

_SHARED: Final = Shape(
    sessions=1100,
    rate=48.0,
    groups=60,
    prefix_tokens=4000,
    turn_tokens=600,
    output_tokens=150,
)
_TALK: Final = Shape(
    sessions=360,
    rate=11.0,
    groups=40,
    prefix_tokens=2000,
    turn_tokens=150,
    output_tokens=400,
    turns=6,
    think_s=6.0,
)
_TOOLS: Final = Shape(
    sessions=100,
    rate=1.6,
    groups=6,
    prefix_tokens=6000,
    turn_tokens=1500,
    output_tokens=150,
    turns=8,
    think_s=3.0,
)
_UNIQUE: Final = Shape(
    sessions=1100, rate=75.0, prefix_tokens=2000, turn_tokens=500, output_tokens=150
)

_HELD_OUT: Final = (
    Case("conversation × 3", "held-out", 8, _trace(_CONVERSATION, 3.0, 5000, 12_031, 1000)),
    Case("conversation × 6", "held-out", 16, _trace(_CONVERSATION, 6.0, 5000, 12_031, 1000)),
    Case("synthetic × 1.5", "held-out", 8, _trace(_SYNTHETIC, 1.5, 1000, 3993, 900)),
    Case("shared-prefix", "held-out", 8, _made(shared_prefix, _SHARED), blocks=4096),
    Case(
        "shared-prefix, 64 pods",
        "held-out",
        64,
        _made(
            shared_prefix,
            replace(_SHARED, groups=300, rate=330.0, sessions=1800),
        ),
        blocks=4096,
    ),
    Case(
        "b2b-saas",
        "held-out",
        8,
        _made(
            shared_prefix,
            Shape(
                **{**PRESETS["b2b-saas"], "rate": 16.0}  # type: ignore[arg-type]
            ),
        ),
    ),
    Case("multi-turn", "held-out", 4, _made(multi_turn, _TALK), blocks=8192),
    Case("agent, small cache", "held-out", 8, _made(agent, _TOOLS), blocks=3072),
    Case("unique", "held-out", 8, _made(unique, _UNIQUE), blocks=8192),
)

_PERTURBED: Final = (
    Case(
        "shared-prefix, prefill × 1.5",
        "perturbed",
        8,
        _made(shared_prefix, replace(_SHARED, rate=36.0)),
        blocks=4096,
        time=Polynomial(prefill_scale=1.5),
    ),
    Case(
        "shared-prefix, quadratic attention",
        "perturbed",
        8,
        _made(shared_prefix, replace(_SHARED, rate=40.0)),
        blocks=4096,
        time=Polynomial(prefill_ns_per_pair=4.0),
    ),
    Case(
        "multi-turn, prefill × 0.5",
        "perturbed",
        4,
        _made(multi_turn, _TALK),
        blocks=8192,
        time=Polynomial(prefill_scale=0.5),
    ),
    Case(
        "agent, 2 of 8 pods slow",
        "perturbed",
        8,
        _made(agent, replace(_TOOLS, rate=1.4)),
        blocks=3072,
        slow_pods=2,
    ),
    Case(
        "unique, 2 of 8 pods slow",
        "perturbed",
        8,
        _made(unique, replace(_UNIQUE, rate=60.0)),
        blocks=8192,
        slow_pods=2,
    ),
)

_LIGHT: Final = (
    Case("b2b-saas", "light", 8, _made(shared_prefix, Shape(sessions=400, rate=2.0))),
    Case(
        "multi-turn",
        "light",
        8,
        _made(multi_turn, replace(_TALK, rate=1.0, sessions=240)),
        blocks=8192,
    ),
)

CASES: Final = (*_TRAINING, *_HELD_OUT, *_PERTURBED, *_LIGHT)
SETS: Final = ("training", "held-out", "perturbed", "light")
FIRST_SEED: Final = {"training": 1, "held-out": 101, "perturbed": 201, "light": 1}
"""Seeds of the sets do not overlap."""
