"""Whatever fails beside them, requests do not: all faults in a long sequence, at full load.

AIBRIX_TEST_SEED repeats a run.
"""

import random
import statistics
import time

import pytest

from tests.e2e.site import BUFFERED, DUPLEX, running_site
from tests.e2e.test_e2e_faults import (
    assert_decisions_explain_themselves,
    loads,
    run_faults,
    seed_of_run,
)
from tests.support import eventually_async

RATE = 100.0
"""Requests per second, on two cores."""

SENT_BY_NULL_RUN = 6000
"""Half a minute at twice the rate."""


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
async def test_the_harness_can_do_twice_the_rate_and_nothing_fails_by_itself() -> None:
    seed = seed_of_run()
    async with running_site(random.Random(seed)) as site:
        (load,) = loads(site, site.rng, {BUFFERED: 2 * RATE})
        load.start()
        began = time.monotonic()
        await eventually_async(lambda: len(load.sent) >= SENT_BY_NULL_RUN, timeout_s=120)
        elapsed_s = time.monotonic() - began
        done = sum(one.ended > 0 for one in load.sent)
        await load.stop()
        bad, _ = load.failures([])
        late_s = statistics.quantiles(load.late_s, n=100)[98]
        print(f"{done / elapsed_s:.1f} answered a second, p99 of lateness {late_s:.3f} s")
        assert not bad, bad[:5]
        assert done / elapsed_s >= 0.98 * 2 * RATE


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
async def test_no_request_fails_by_any_fault_in_a_long_sequence_at_full_load() -> None:
    seed = seed_of_run()
    async with running_site(random.Random(seed)) as site:
        rates = {BUFFERED: RATE, DUPLEX: 5.0}
        under_load = await run_faults(site, seed, rates, faults=52, hold_s=(1.0, 7.0))
        assert len(under_load[0].sent) > 10_000
        await assert_decisions_explain_themselves(site)
