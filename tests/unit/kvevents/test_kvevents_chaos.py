"""Random faults over real sockets, then peace: the index holds what the engines hold.

`make chaos` runs the same without end, and against the clock.
"""

import pytest

from tests.backends import NewIndex, new_index
from tests.chaos_rig import run_seed

__all__ = ["new_index"]


@pytest.mark.parametrize("seed", [4, 18])
def test_after_faults_one_step_of_each_engine_makes_the_index_right(
    new_index: NewIndex, seed: int
) -> None:
    """Seed 4 and 18 once left a subscription without a connection for ever."""
    run_seed(new_index(), seed, rounds=2, within_s=20.0)
