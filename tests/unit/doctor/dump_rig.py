"""A real Envoy's own config dump, to be changed in one place.

Owns the ways to a place, and the changes that more than one test makes.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.unit.doctor.doctor_rig import examine_dump, told

Json = dict[str, Any]
Change = Callable[["Dumped"], object]
EXT_PROC = "envoy.filters.http.ext_proc"
DESTINATION = "x-gateway-destination-endpoint"
V1 = "type.googleapis.com/envoy.extensions"


class Dumped:
    """The places of a config dump that tests change."""

    def __init__(self, document: Json) -> None:
        self.document = document

    def section(self, name: str) -> Json:
        found: Json = next(
            one for one in self.document["configs"] if one["@type"].endswith(f"{name}ConfigDump")
        )
        return found

    @property
    def listener(self) -> Json:
        found: Json = self.section("Listeners")["static_listeners"][0]["listener"]
        return found

    @property
    def manager(self) -> Json:
        found: Json = self.listener["filter_chains"][0]["filters"][0]["typed_config"]
        return found

    @property
    def filters(self) -> list[Json]:
        found: list[Json] = self.manager["http_filters"]
        return found

    @property
    def processor(self) -> Json:
        found: Json = next(one for one in self.filters if one["name"] == EXT_PROC)["typed_config"]
        return found

    @property
    def mode(self) -> Json:
        found: Json = self.processor["processing_mode"]
        return found

    @property
    def host(self) -> Json:
        found: Json = self.manager["route_config"]["virtual_hosts"][0]
        return found

    def route(self, name: str) -> Json:
        found: Json = next(one for one in self.host["routes"] if one.get("name") == name)
        return found

    def cluster(self, name: str) -> Json:
        clusters = self.section("Clusters")["static_clusters"]
        found: Json = next(one["cluster"] for one in clusters if one["cluster"]["name"] == name)
        return found

    def thresholds(self, name: str) -> Json:
        found: Json = self.cluster(name)["circuit_breakers"]["thresholds"][0]
        return found

    @property
    def override(self) -> Json:
        policy = self.cluster("engines")["load_balancing_policy"]["policies"][0]
        found: Json = policy["typed_extension_config"]["typed_config"]
        return found

    def hosts(self, name: str) -> list[Json]:
        listed = self.section("Endpoints")["static_endpoint_configs"]
        config = next(
            one["endpoint_config"]
            for one in listed
            if one["endpoint_config"]["cluster_name"] == name
        )
        found: list[Json] = config["endpoints"][0]["lb_endpoints"]
        return found


def off(name: str) -> Json:
    return {name: {"@type": f"{V1}.filters.http.ext_proc.v3.ExtProcPerRoute", "disabled": True}}


def duplex(d: Dumped, **changes: Any) -> None:
    d.mode.update(
        request_body_mode="FULL_DUPLEX_STREAMED",
        request_trailer_mode="SEND",
        response_trailer_mode="SEND",
    )
    d.processor["failure_mode_allow"] = False
    d.mode.update({k: v for k, v in changes.items() if k.endswith("_mode")})
    d.processor.update({k: v for k, v in changes.items() if not k.endswith("_mode")})


def withheld(dumped: Dumped, header: str) -> None:
    """The filter's list lets this header through no more."""
    rules = dumped.processor["forward_rules"]["allowed_headers"]
    rules["patterns"] = [one for one in rules["patterns"] if one["exact"] != header]


def metadata_source() -> Json:
    return {"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}}


def ids(cases: list[tuple[str, Change, set[str]]]) -> list[str]:
    return [case[0] for case in cases]


async def codes_of(folder: Path, dump: Json, change: Change) -> set[str]:
    document = copy.deepcopy(dump)
    change(Dumped(document))
    return set(told(await examine_dump(folder, document)))
