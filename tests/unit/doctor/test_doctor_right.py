"""Right set-ups: nothing is red or yellow, and everything was looked at."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest
import yaml

from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.findings import Severity
from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_envoy, start_server
from tests.envoy_binary import envoy_path
from tests.fake_kube import FakeKube
from tests.support import eventually_async
from tests.unit.doctor.doctor_rig import (
    SYNC,
    engine_pod,
    examine_cluster,
    examine_dump,
    real_dump,
    site,
    told,
    unskipped,
    workload,
)

ROOT = Path(__file__).parents[3]
ENVOYS = (OVERRIDE_HOST, ORIGINAL_DST)


async def test_engines_a_processor_and_a_real_envoy_as_shipped_are_all_green(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as here, aiohttp.ClientSession() as session:
        await here.complete(0)
        pods = tmp_path / "pods.yaml"
        pods.write_text(yaml.safe_dump({"pods": here.pods}))
        with Processes() as processes:
            here.environment["AIBRIX_EXTPROC_DECISION_TIMEOUT"] = "1s"  # Envoy waits for 2 s
            environment = {**here.environment, "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(pods)}
            server = await start_server(processes, session, environment)
            config = envoy_config.render(
                envoy_config.shipped(OVERRIDE_HOST),
                listen="127.0.0.1:0",
                admin="127.0.0.1:0",
                extproc_addresses=[server.grpc_address],
                engine_addresses=[engine.address for engine in here.engines],
            )
            envoy = await start_envoy(processes, session, envoy_path(), config)
            here.environment |= server.addresses
            asked = {
                "envoy_admin": envoy.admin_url,
                "server": server.admin_url,
                "debug": server.debug_url,
                "probe": True,
            }

            async def right() -> bool:
                return told(await here.examine(**asked)) == {}

            # Envoy's health checks and the first sync take a moment after the start.
            with contextlib.suppress(AssertionError):
                await eventually_async(right)
            findings = await here.examine(**asked)
    assert told(findings) == {}
    assert unskipped(findings) >= {"variables", "pods", "engines", "events", "tokenizer"}
    assert unskipped(findings) >= {"envoy", "server"}


@pytest.mark.parametrize("name", ENVOYS)
@pytest.mark.parametrize("mode", BodyMode)
async def test_a_static_file_as_shipped_is_green_and_its_duplex_variant_too(
    name: str, mode: BodyMode, tmp_path: Path
) -> None:
    config = envoy_config.render(
        envoy_config.shipped(name),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=["127.0.0.1:50052"],
        engine_addresses=["127.0.0.1:8000", "127.0.0.1:8001"],
        body_mode=mode,
    )
    assert told(await examine_dump(tmp_path, config)) == {}


async def test_the_compose_files_environment_with_its_envoy_is_green() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    environment = {
        name: str(value).replace("/etc/aibrix-extproc", str(ROOT / "envoy"))
        for name, value in compose["services"]["processor-1"]["environment"].items()
    }
    asked = Asked(envoy_dump=str(ROOT / "envoy" / OVERRIDE_HOST), timeout_s=0.05, listen_s=0.05)
    findings = run_checks(await collect(asked, environment))
    # The containers do not run here: engines and events cannot be asked.
    here = [f for f in findings if f.area in {"variables", "pods", "envoy"}]
    assert told(here) == {}


async def test_pods_of_a_cluster_are_green(tmp_path: Path) -> None:
    kube = FakeKube().start()
    try:
        async with site(tmp_path) as here:
            for engine in here.engines:
                kube.apply(engine_pod(engine))
            labels = engine_pod(here.engines[0])["metadata"]["labels"]
            kube.workloads["deployments"] = [workload(labels, labels)]
            findings = await examine_cluster(kube, SYNC, probe=True)
    finally:
        kube.stop()
    assert told(findings) == {}
    assert unskipped(findings) >= {"variables", "pods", "engines", "events", "tokenizer"}
    assert all("watch" not in query for query in kube.lists)


async def test_ranks_are_followed_each_on_its_own_ports(tmp_path: Path) -> None:
    async with site(tmp_path, {"data_parallel_size": 2}) as here:
        here.pods[0]["kv_events"] = True  # by its own /kv_event_sources
        here.pods[0]["ranks"] = 1
        findings = await here.examine(probe=True)
    assert told(findings) == {}


async def test_without_events_and_tokenizer_nothing_is_wrong(tmp_path: Path) -> None:
    async with site(tmp_path, {"kv_events_port": None}) as here:
        here.environment = {}
        here.pods[0]["kv_events"] = False
        findings = await here.examine()
    assert told(findings) == {}
    assert {f.area for f in findings if f.severity is Severity.SKIPPED} >= {"events"}


async def test_a_dump_of_a_real_envoy_says_the_same_as_its_file(tmp_path: Path) -> None:
    dumps = await asyncio.gather(*(real_dump(name) for name in ENVOYS))
    for dump in dumps:
        assert told(await examine_dump(tmp_path, dump)) == {}
