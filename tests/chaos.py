"""`python -m tests.chaos`: random faults against event sync, until the time is over.

Half of the time goes to the model of an engine (many short histories, hypothesis), half to real
sockets. CHAOS_SEED (default: drawn, printed) and CHAOS_SECONDS (default 60) are read from the
environment. Exit code 1 where anything did not hold.
"""

import logging
import os
import random
import sys
import time

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.backends import BACK_ENDS
from tests.chaos_rig import run_seed
from tests.unit.kvevents.test_kvevents_source_model import EngineModel

WITHIN_S = 3.0
ROUNDS = 4


def chaos(first_seed: int, seconds: float) -> str:
    """Run for so long; what was done. Raises AssertionError with the seed and the story."""
    began = time.monotonic()
    histories = 0
    while time.monotonic() < began + seconds / 2:
        examples = settings(
            max_examples=200,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        machine = seed(first_seed + histories)(type("Model", (EngineModel,), {}))
        run_state_machine_as_test(machine, settings=examples)
        histories += 200
    took: list[float] = []
    number = first_seed
    while time.monotonic() < began + seconds:
        back_end = list(BACK_ENDS)[number % len(BACK_ENDS)]
        took += run_seed(BACK_ENDS[back_end](), number, ROUNDS, WITHIN_S)
        number += 1
    rounds = f"{len(took)} rounds over sockets from seed {first_seed}"
    return f"{histories} histories of the model, {rounds}; right again after {max(took):.1f} s"


def main() -> int:
    logging.disable(logging.CRITICAL)
    first_seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or 60)
    print(f"CHAOS_SEED={first_seed} CHAOS_SECONDS={seconds:g}", flush=True)
    try:
        print(f"held: {chaos(first_seed, seconds)}")
    except AssertionError as error:
        print(f"FAILED (CHAOS_SEED={first_seed}): {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
