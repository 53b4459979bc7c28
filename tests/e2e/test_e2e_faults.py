"""Whatever fails beside them, requests do not: a seeded sequence of faults under load.

A run that failed is repeated by AIBRIX_TEST_SEED=… with the seed that it names.
"""

import os
import random

from tests.e2e.faults import play
from tests.e2e.load import Excuse, Load
from tests.e2e.site import BUFFERED, DUPLEX, Site, running_site

BASIS = "aibrix_extproc_decision_basis_total"
OUTCOMES = "aibrix_extproc_requests_total"


def seed_of_run() -> str:
    """The seed of this session (tests/conftest.py sets it)."""
    seed = os.environ["AIBRIX_TEST_SEED"]
    print(f"AIBRIX_TEST_SEED={seed}", flush=True)
    return seed


def loads(site: Site, rng: random.Random, rates: dict[str, float]) -> list[Load]:
    return [
        Load(gate, site.envoys[gate].url, rate, random.Random(rng.random()), site.session)
        for gate, rate in rates.items()
    ]


async def run_faults(
    site: Site, seed: str, rates: dict[str, float], faults: int, hold_s: tuple[float, float]
) -> list[Load]:
    """Faults under load; every failure without an excuse fails the test."""
    excuses: list[Excuse] = []
    under_load = loads(site, site.rng, rates)
    for load in under_load:
        load.start()
    try:
        played = await play(site, seed, faults, hold_s, excuses)
        await site.healed()
    finally:
        for load in under_load:
            await load.stop()
    for load in under_load:
        bad, excused = load.failures(excuses)
        print(f"{load.gate}: {len(load.sent)} sent, {len(excused)} excused", flush=True)
        told = [f"{one.began:.2f} to {one.ended:.2f}: {one.trouble}" for one in bad[:10]]
        assert not bad, f"seed {seed}: {len(bad)} of {len(load.sent)} failed: {told} in {played}"
    return under_load


async def assert_decisions_explain_themselves(site: Site) -> None:
    """Each pick has one reason, and the share that was decided by load alone is exported."""
    by_prefix = 0.0
    for server in range(len(site.servers)):
        bases = await site.counted(server, BASIS, "basis")
        outcomes = await site.counted(server, OUTCOMES, "outcome")
        print(f"processor {server}: {bases}, {outcomes}", flush=True)
        by_prefix += bases.get("prefix", 0)
        # A client, or Envoy, may leave between a decision and its reply. (One that was restarted
        # at the end may have decided nothing.)
        undecided = sum(bases.values()) - outcomes.get("picked", 0)
        assert 0 <= undecided <= outcomes.get("left", 0)
    assert by_prefix > 0


async def test_no_request_fails_by_a_fault_beside_it() -> None:
    seed = seed_of_run()
    async with running_site(random.Random(seed), health_interval_s=0.1) as site:
        rates = {BUFFERED: 25.0, DUPLEX: 5.0}
        await run_faults(site, seed, rates, faults=5, hold_s=(0.2, 0.8))
        await assert_decisions_explain_themselves(site)
