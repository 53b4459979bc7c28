"""`aibrix-extproc doctor` reads the Envoy that Envoy Gateway makes: what policies lack is named."""

from pathlib import Path

import aiohttp
import pytest

from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_envoy
from tests.envoy_binary import envoy_path
from tests.manifests import deployed, gateway_envoy
from tests.manifests.crds import NEWEST
from tests.manifests.gateway_sets import AIBRIX, BASE, PATCHED, Set
from tests.unit.doctor.doctor_rig import examine_dump, told

LACKING = {"envoy-secrets-forwarded", "envoy-grpc-retry-same-host"}
LIMIT = "AIBRIX_EXTPROC_MAX_BODY_BYTES"


@pytest.mark.parametrize(
    ("one", "codes"),
    [(BASE, LACKING), (AIBRIX, LACKING), (PATCHED, set())],
    ids=["base", "aibrix", "envoy-patches"],
)
async def test_doctor_finds_what_the_policies_cannot_say_and_nothing_else(
    one: Set, codes: set[str], tmp_path: Path
) -> None:
    engines = ["127.0.0.1:8000", "127.0.0.1:8001"]
    config = gateway_envoy.config(one.xds(NEWEST), ["127.0.0.1:50052"], engines)
    with Processes() as processes:
        async with aiohttp.ClientSession() as session:
            envoy = await start_envoy(processes, session, envoy_path(), config)
            async with session.get(f"{envoy.admin_url}/config_dump?include_eds") as reply:
                dump = await reply.text()
    settings = deployed.find(deployed.processor(), "ConfigMap")["data"]
    findings = await examine_dump(tmp_path, dump, {LIMIT: settings[LIMIT]})
    assert set(told(findings)) == codes
