"""A configuration that comes over xDS, as Envoy Gateway's does: other shapes, the same findings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aibrix_extproc.doctor.envoy_dump import read_document, read_dump
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST, Config
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_envoy
from tests.envoy_binary import envoy_path
from tests.unit.doctor.doctor_rig import examine_dump, told

FILTER = "envoy.filters.http.ext_proc/envoyextensionpolicy/default/llm/extproc/0"
TYPES = "type.googleapis.com/envoy.config."


def as_gateway(config: Config) -> tuple[Config, Config, list[Config]]:
    """Listener, route configuration and clusters as Envoy Gateway makes them: the filter is off
    for all and switched on by routes, and the buffer is the listener's."""
    listener = config["static_resources"]["listeners"][0]
    manager = envoy_config.connection_manager(config)
    processor = manager["http_filters"][0]
    processor |= {"name": FILTER, "disabled": True}
    routes = manager.pop("route_config")
    manager["rds"] = {"route_config_name": routes["name"], "config_source": {}}
    host = routes["virtual_hosts"][0]
    limit = host.pop("request_body_buffer_limit")
    listener["per_connection_buffer_limit_bytes"] = limit
    on = {"@type": f"{TYPES}route.v3.FilterConfig", "config": {}}
    for route in host["routes"]:
        is_ours = "typed_per_filter_config" not in route
        route["typed_per_filter_config"] = {FILTER: on} if is_ours else {}
    return listener, routes, config["static_resources"]["clusters"]


def shipped() -> Config:
    return envoy_config.render(
        envoy_config.shipped(OVERRIDE_HOST),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=["127.0.0.1:50052"],
        engine_addresses=["127.0.0.1:8000", "127.0.0.1:8001"],
        access_log="/dev/null",
    )


def write(path: Path, resources: list[Config]) -> Config:
    path.write_text(json.dumps({"resources": resources}))
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


async def dynamic_dump(folder: Path, change: Callable[[Config, Config], object]) -> str:
    """What a real Envoy says that has all of it from files, after `change(listener, routes)`."""
    config = shipped()
    listener, routes, clusters = as_gateway(config)
    change(listener, routes)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    typed = {"@type": f"{TYPES}route.v3.RouteConfiguration", **routes}
    manager["rds"]["config_source"] = write(folder / "rds.json", [typed])
    for cluster in clusters:
        typed = {"@type": f"{TYPES}endpoint.v3.ClusterLoadAssignment"}
        # A file for each: Envoy takes no other assignment than the one it wants.
        source = write(folder / f"{cluster['name']}.json", [typed | cluster.pop("load_assignment")])
        cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": source}}
        cluster["@type"] = f"{TYPES}cluster.v3.Cluster"
    typed = {"@type": f"{TYPES}listener.v3.Listener", **listener}
    bootstrap = {
        "node": {"id": "test", "cluster": "test"},
        "admin": config["admin"],
        "dynamic_resources": {
            "lds_config": write(folder / "lds.json", [typed]),
            "cds_config": write(folder / "cds.json", clusters),
        },
    }
    async with aiohttp.ClientSession() as session:
        with Processes() as processes:
            envoy = await start_envoy(processes, session, envoy_path(), bootstrap)
            async with session.get(f"{envoy.admin_url}/config_dump?include_eds") as reply:
                return await reply.text()


def nothing(listener: Config, routes: Config) -> None:
    """As it is."""


def filter_on_nowhere(listener: Config, routes: Config) -> None:
    for route in routes["virtual_hosts"][0]["routes"]:
        route["typed_per_filter_config"] = {}


def small_buffer(listener: Config, routes: Config) -> None:
    listener["per_connection_buffer_limit_bytes"] = 32768


def default_timeout(listener: Config, routes: Config) -> None:
    for route in routes["virtual_hosts"][0]["routes"]:
        route["route"] = {"cluster": "engines"}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (nothing, set()),
        (filter_on_nowhere, {"envoy-route-disabled"}),
        (small_buffer, {"envoy-buffer-limit"}),
        (default_timeout, {"envoy-route-timeout"}),
    ],
)
async def test_what_comes_over_xds_is_read_alike(
    change: Callable[[Config, Config], object], codes: set[str], tmp_path: Path
) -> None:
    dump = await dynamic_dump(tmp_path, change)
    assert '"dynamic_route_configs"' in dump
    assert set(told(await examine_dump(tmp_path, dump))) == codes


def camel(value: Any) -> Any:
    """Names as protobuf's JSON has them by default, which `egctl` prints."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value

    def name(text: str) -> str:
        first, *rest = text.split("_")
        return text if "." in text or "-" in text else first + "".join(map(str.title, rest))

    return {name(key): camel(one) for key, one in value.items()}


async def test_what_egctl_prints_is_read_alike(tmp_path: Path) -> None:
    dump = json.loads(await dynamic_dump(tmp_path, small_buffer))
    printed = {"envoy-gateway-system": {"envoy-default": {"configDump": camel(dump)}}}
    assert set(told(await examine_dump(tmp_path, printed))) == {"envoy-buffer-limit"}


async def test_of_several_processors_ours_is_known_by_its_port(tmp_path: Path) -> None:
    config = shipped()
    other = json.loads(json.dumps(envoy_config.connection_manager(config)["http_filters"][0]))
    other["name"] = "guardrails"
    other["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = "guardrails"
    other["typed_config"]["processing_mode"]["request_body_mode"] = "NONE"
    envoy_config.connection_manager(config)["http_filters"].insert(0, other)
    assert told(await examine_dump(tmp_path, config)) == {}


async def test_an_application_beside_ours_is_none_of_our_business(tmp_path: Path) -> None:
    config = shipped()
    hosts = envoy_config.connection_manager(config)["route_config"]["virtual_hosts"]
    hosts[0]["domains"] = ["llm.example"]
    off = hosts[0]["routes"][-1]["typed_per_filter_config"]
    web = {"match": {"prefix": "/"}, "route": {"cluster": "web"}, "typed_per_filter_config": off}
    hosts.append({"name": "web", "domains": ["*"], "routes": [web]})
    config["static_resources"]["clusters"].append({"name": "web", "type": "STATIC"})
    assert told(await examine_dump(tmp_path, config)) == {}


def test_yaml_and_json_are_read_alike() -> None:
    path = envoy_config.shipped(OVERRIDE_HOST)
    from_yaml = read_dump(read_document(path.read_text()))
    from_json = read_dump(read_document(json.dumps(envoy_config.load(path))))
    assert from_yaml == from_json
    assert from_yaml.managers[0].hosts[0].routes[0].clusters == ("engines",)
