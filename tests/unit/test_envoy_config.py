"""The shipped Envoy files, run by a real Envoy between stubs."""

import asyncio
import json
import subprocess
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.extproc.messages import REQUEST_HEADERS
from aibrix_extproc.settings import BodyMode, Settings
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST, Config, PickSource
from aibrix_extproc.stack.processes import free_port
from tests.envoy_binary import envoy_path
from tests.support import eventually_async
from tests.unit.envoy_stub import Rig, StubEngine, StubProcessor
from tests.unit.envoy_stub import rig as stub_rig

BOTH = (OVERRIDE_HOST, ORIGINAL_DST)
DESTINATION = "x-gateway-destination-endpoint"


def rig(name: str, replicas: int = 1, **options: Any) -> AbstractAsyncContextManager[Rig]:
    def config(processors: list[StubProcessor], engines: list[StubEngine]) -> Config:
        return envoy_config.render(
            envoy_config.shipped(name),
            listen="127.0.0.1:0",
            admin="127.0.0.1:0",
            extproc_addresses=[processor.address for processor in processors[:replicas]],
            engine_addresses=[engine.address for engine in engines],
            **options,
        )

    return stub_rig(config)


def pick(rig: Rig, *addresses: str) -> None:
    """What the processor sets: one pod, and all in order."""
    rig.processor.headers = {"target-pod": addresses[0], DESTINATION: ",".join(addresses)}
    rig.processor.metadata = {DESTINATION: ",".join(addresses)}


async def last_line(rig: Rig) -> dict[str, Any]:
    """The access log's last line, once it is written."""
    text = await eventually_async(lambda: rig.envoy.access_log.read_text().strip())
    line: dict[str, Any] = json.loads(text.splitlines()[-1])
    return line


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(envoy_path()), "--mode", "validate", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", BOTH)
def test_envoy_accepts_the_file_as_shipped(name: str) -> None:
    result = validate(envoy_config.shipped(name))
    assert result.returncode == 0, result.stderr
    assert "[warning]" not in result.stderr


@pytest.mark.parametrize("name", BOTH)
def test_envoy_accepts_the_duplex_variant(name: str, tmp_path: Path) -> None:
    config = envoy_config.render(
        envoy_config.shipped(name),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=["127.0.0.1:1"],
        engine_addresses=["127.0.0.1:2"],
        body_mode=BodyMode.DUPLEX,
    )
    path = tmp_path / "duplex.json"
    path.write_text(json.dumps(config))
    result = validate(path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", BOTH)
def test_the_buffer_of_envoy_is_a_mebibyte_above_the_body_limit(name: str) -> None:
    manager = envoy_config.connection_manager(envoy_config.load(envoy_config.shipped(name)))
    limit = manager["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"]
    assert limit == Settings().max_body_bytes + 1024 * 1024


@pytest.mark.parametrize("name", BOTH)
def test_envoy_waits_longer_for_a_decision_than_the_processor_takes(name: str) -> None:
    processor = envoy_config.ext_proc(envoy_config.load(envoy_config.shipped(name)))
    assert float(processor["message_timeout"].rstrip("s")) > Settings().decision_timeout_s


def test_the_route_retries_as_often_as_there_are_alternatives() -> None:
    manager = envoy_config.connection_manager(
        envoy_config.load(envoy_config.shipped(OVERRIDE_HOST))
    )
    retries = manager["route_config"]["virtual_hosts"][0]["retry_policy"]["num_retries"]
    assert retries == Settings().alternatives


def test_a_file_that_is_no_envoy_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("pods: []")
    with pytest.raises(SettingsError, match="static_resources"):
        envoy_config.load(path)


def test_a_template_without_the_processor_is_refused(tmp_path: Path) -> None:
    config = envoy_config.load(envoy_config.shipped(OVERRIDE_HOST))
    envoy_config.connection_manager(config)["http_filters"].pop(0)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="lacks a part"):
        envoy_config.render(
            path, listen="127.0.0.1:0", admin="127.0.0.1:0", extproc_addresses=["127.0.0.1:1"]
        )


@pytest.mark.parametrize("name", BOTH)
async def test_the_picked_pod_gets_the_request(name: str) -> None:
    async with rig(name) as r:
        for engine in r.engines * 2:
            pick(r, engine.address)
            assert await r.post() == (200, engine.name)


async def test_the_metadata_alone_picks_the_pod() -> None:
    async with rig(OVERRIDE_HOST, pick_source=PickSource.METADATA) as r:
        for engine in r.engines * 2:
            r.processor.metadata = {DESTINATION: engine.address}
            assert await r.post() == (200, engine.name)


async def test_a_dead_pod_costs_a_retry_and_the_alternative_answers() -> None:
    async with rig(OVERRIDE_HOST) as r:
        dead, other, alternative = r.engines
        await dead.stop()
        pick(r, dead.address, alternative.address, other.address)
        assert await r.post() == (200, alternative.name)
        assert (await last_line(r))["attempts"] == 2


async def test_without_a_living_alternative_the_fallback_answers() -> None:
    async with rig(OVERRIDE_HOST) as r:
        first, alive, second = r.engines
        await first.stop()
        await second.stop()
        pick(r, first.address, second.address)
        assert await r.post() == (200, alive.name)


async def test_a_pick_that_envoy_does_not_know_goes_to_the_fallback() -> None:
    async with rig(OVERRIDE_HOST) as r:
        for nonsense in (f"127.0.0.1:{free_port()}", "not an address"):
            pick(r, nonsense)
            assert (await r.post())[0] == 200


async def test_a_dead_pod_is_a_503_where_envoy_knows_no_other() -> None:
    async with rig(ORIGINAL_DST) as r:
        pick(r, f"127.0.0.1:{free_port()}")
        assert (await r.post())[0] == 503


@pytest.mark.parametrize("down", [False, True], ids=["processor up", "processor down"])
async def test_a_destination_of_a_clients_own_is_stripped(down: bool) -> None:
    async with rig(OVERRIDE_HOST) as r:
        if down:
            await r.processor.stop()
        spoofed = {
            "Target-Pod": r.engines[0].address,
            DESTINATION.title(): r.engines[0].address,
            "X-Data-Parallel-Rank": "1",
        }
        for _ in range(12):
            assert (await r.post(headers=spoofed))[0] == 200
        forbidden = {"target-pod", DESTINATION, "x-data-parallel-rank"}
        assert all(forbidden.isdisjoint(headers) for headers in r.received)
        assert all(forbidden.isdisjoint(headers) for headers in r.processor.seen)
        assert len(r.engines[0].requests) < 12, "the client chose the pod"
        assert bool(r.processor.seen) is not down


@pytest.mark.parametrize("path", ["/v1/completions", "/anything"])
@pytest.mark.parametrize("down", [False, True], ids=["processor up", "processor down"])
async def test_original_dst_is_no_open_proxy(down: bool, path: str) -> None:
    async with rig(ORIGINAL_DST) as r:
        if down:
            await r.processor.stop()
        status, text = await r.post(path, headers={"target-pod": r.engines[0].address})
        assert status == 503
        assert json.loads(text)["error"]["code"] == "service_unavailable"
        assert r.received == []


async def test_without_a_pick_the_fallback_answers() -> None:
    async with rig(OVERRIDE_HOST) as r:
        assert (await r.post())[0] == 200


@pytest.mark.parametrize("name", BOTH)
async def test_large_bodies_reach_the_pod(name: str) -> None:
    async with rig(name) as r:
        pick(r, r.engines[2].address)
        for size in (300_000, 16 << 20):
            assert await r.post(data=b"x" * size) == (200, "engine-2")
        assert r.engines[2].bodies == [300_000, 16 << 20]


@pytest.mark.parametrize("name", BOTH)
async def test_a_body_above_the_buffer_is_a_413(name: str) -> None:
    async with rig(name) as r:
        assert (await r.post(data=b"x" * ((17 << 20) + 70_000)))[0] == 413
        assert r.received == []


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/v1/audio/transcriptions", "multipart/form-data; boundary=b"), ("/tokenize", "text/plain")],
)
async def test_what_names_no_prefix_skips_the_processor(path: str, content_type: str) -> None:
    async with rig(OVERRIDE_HOST) as r:
        body = b"x" * (20 << 20)
        status, _ = await r.post(path, data=body, headers={"content-type": content_type})
        assert status == 200
        assert [n for engine in r.engines for n in engine.bodies] == [len(body)]
        assert r.processor.seen == []


@pytest.mark.parametrize("name", BOTH)
def test_the_processor_is_sent_the_headers_that_it_reads_and_no_others(name: str) -> None:
    config = envoy_config.load(envoy_config.shipped(name))
    rules = envoy_config.ext_proc(config)["forward_rules"]
    assert list(rules) == ["allowed_headers"]
    sent = {pattern["exact"] for pattern in rules["allowed_headers"]["patterns"]}
    assert sent == REQUEST_HEADERS | {":status"}


async def test_secrets_of_clients_go_to_the_engine_and_not_to_the_processor() -> None:
    async with rig(OVERRIDE_HOST) as r:
        secret = {"authorization": "Bearer s", "cookie": "a=b", "x-api-key": "s", "api-key": "s"}
        assert (await r.post(headers=secret))[0] == 200
        assert r.received[0].items() >= secret.items()
        assert secret.keys().isdisjoint(r.processor.seen[0])


async def test_clients_cannot_steer_retries_and_request_ids() -> None:
    async with rig(OVERRIDE_HOST) as r:
        sent = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "9", "x-request-id": "mine"}
        assert (await r.post(headers=sent))[0] == 200
        received = r.received[0]
        assert {"x-envoy-retry-on", "x-envoy-max-retries"}.isdisjoint(received)
        assert received["x-request-id"] != "mine"
        assert r.processor.seen[0]["x-request-id"] == received["x-request-id"]


@pytest.mark.parametrize("name", BOTH)
async def test_a_replica_that_dies_costs_no_decision(name: str) -> None:
    async with rig(name, replicas=2) as r:
        for processor in (r.processor, r.replica):
            processor.headers = {"target-pod": r.engines[0].address}
            processor.headers |= {DESTINATION: r.engines[0].address}
        await r.replica.stop()
        replies = await asyncio.gather(*(r.post() for _ in range(60)))
        assert replies == [(200, "engine-0")] * 60
        assert len(r.processor.seen) == 60


async def test_a_processor_that_comes_back_is_used_again() -> None:
    async with rig(OVERRIDE_HOST) as r:
        pick(r, r.engines[0].address)
        address = r.processor.address
        await r.processor.stop()
        assert (await r.post())[0] == 200
        await r.processor.start(address)
        seen = len(r.processor.seen)

        async def used() -> bool:
            await r.post()
            return len(r.processor.seen) > seen

        await eventually_async(used)


async def test_the_access_log_says_who_answered_and_how_long_the_processor_took() -> None:
    async with rig(OVERRIDE_HOST) as r:
        pick(r, r.engines[0].address)
        await r.post()
        line = await last_line(r)
        assert line["upstream"] == r.engines[0].address
        assert line["picked"] == r.engines[0].address
        assert line["route"] == "picked"
        assert line["attempts"] == 1
        assert line["ext_proc"]


@pytest.mark.parametrize("mode", BodyMode)
async def test_the_processor_is_told_the_body_mode(mode: BodyMode) -> None:
    async with rig(OVERRIDE_HOST, body_mode=mode) as r:
        async with r.session.get(r.envoy.url + "/v1/models"):
            told = r.processor.modes[0]
        expected = {BodyMode.BUFFERED: "BUFFERED", BodyMode.DUPLEX: "FULL_DUPLEX_STREAMED"}[mode]
        assert (
            told.request_body_mode
            == told.DESCRIPTOR.fields_by_name["request_body_mode"]
            .enum_type.values_by_name[expected]
            .number
        )
