"""What Envoy Gateway makes of envoy/gateway: current, accepted by Envoy, and what the policies say.

tests/e2e/test_e2e_gateway.py shows what Envoy does with it.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aibrix_extproc.settings import Settings
from tests.envoy_binary import envoy_path
from tests.manifests import gateway_envoy
from tests.manifests.crds import NEWEST, OLDEST, RELEASES
from tests.manifests.gateway_envoy import ENGINES, PROCESSOR, UPLOADS
from tests.manifests.gateway_sets import AIBRIX, BASE, PATCHED, SETS, Set

Json = dict[str, Any]

TRANSLATED = [one for one in SETS if one.translates]
EVERY = [(one, release) for one in TRANSLATED for release in RELEASES]
IDS = [f"{one.name}, {release}" for one, release in EVERY]


def running(one: Set, release: str = NEWEST) -> Json:
    return gateway_envoy.config(one.xds(release), ["127.0.0.1:1", "127.0.0.1:2"], ["127.0.0.1:3"])


@pytest.mark.parametrize(("one", "release"), EVERY, ids=IDS)
def test_the_xds_was_made_of_these_manifests_and_nothing_was_refused(
    one: Set, release: str
) -> None:
    assert one.xds(release)["refused"] == []


def test_xds_of_other_manifests_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = [*BASE.objects(), {"kind": "more"}]
    monkeypatch.setattr(Set, "objects", lambda _: changed)
    with pytest.raises(LookupError, match="make gateway-xds"):
        BASE.xds(NEWEST)


@pytest.mark.parametrize(("one", "release"), EVERY, ids=IDS)
def test_envoy_accepts_it_without_a_warning(one: Set, release: str, tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(running(one, release)))
    command = [str(envoy_path()), "--mode", "validate", "-c", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "[warning]" not in result.stderr


def differences(old: Any, new: Any, path: str = "") -> set[str]:
    """The paths of what stands in one of the two, or differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = {f"{path}.{key}" for key in old.keys() ^ new.keys()}
        return found.union(*(differences(old[k], new[k], f"{path}.{k}") for k in old.keys() & new))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return set().union(*(differences(a, b, f"{path}[]") for a, b in zip(old, new, strict=True)))
    return set() if old == new else {path}


@pytest.mark.parametrize("one", TRANSLATED, ids=lambda one: one.name)
def test_the_oldest_and_the_newest_release_ask_the_same_of_envoy(one: Set) -> None:
    """But for what the README there names: 1.6.0 switches the idle time-out of routes off."""
    old, new = one.xds(OLDEST), one.xds(NEWEST)
    route = ".virtualHosts[].routes[]"
    assert differences(old["listener"], new["listener"]) == set()
    assert differences(old["routes"], new["routes"]) == {
        f"{route}.route.idleTimeout",
        f"{route}.metadata.filterMetadata.envoy-gateway.policies",
    }
    # What a cluster with a load balancing policy says anyway.
    assert differences(old["clusters"], new["clusters"]) == {"[].lbPolicy"}


@pytest.mark.parametrize(("one", "release"), EVERY, ids=IDS)
def test_the_time_outs_are_those_that_were_asked_for(one: Set, release: str) -> None:
    config = running(one, release)
    manager = gateway_envoy.manager_of(config)
    assert manager["streamIdleTimeout"] == "1800s"
    assert manager["requestTimeout"] == "300s"
    # Envoy's default of 15 s would cut off every longer answer.
    assert {route["route"]["timeout"] for route in gateway_envoy.routes(config)} == {"0s"}
    assert gateway_envoy.ext_proc(manager)["messageTimeout"] == "2s"
    assert gateway_envoy.cluster(config, PROCESSOR)["connectTimeout"] == "0.500s"
    for name in (ENGINES, UPLOADS):
        engines = gateway_envoy.cluster(config, name)
        assert engines["connectTimeout"] == "1s"
        (options,) = engines["typedExtensionProtocolOptions"].values()
        assert options["commonHttpProtocolOptions"]["idleTimeout"] == "4s"


def test_envoy_waits_longer_for_a_decision_than_the_processor_takes() -> None:
    processor = gateway_envoy.ext_proc(gateway_envoy.manager_of(running(BASE)))
    assert float(processor["messageTimeout"].rstrip("s")) > Settings().decision_timeout_s
    assert processor["failureModeAllow"] is True


@pytest.mark.parametrize("one", [BASE, PATCHED], ids=lambda one: one.name)
def test_the_routes_retry_as_often_as_there_are_alternatives(one: Set) -> None:
    policies = [route["route"]["retryPolicy"] for route in gateway_envoy.routes(running(one))]
    assert {policy["numRetries"] for policy in policies} == {Settings().alternatives}
    # 503 of an engine is an answer; without triggers of its own Envoy Gateway would retry it.
    triggers = {"connect-failure", "refused-stream", "reset-before-request"}
    assert all(set(policy["retryOn"].split(",")) == triggers for policy in policies)
    assert {policy["hostSelectionRetryMaxAttempts"] for policy in policies} == {
        "64" if one is PATCHED else "5"
    }


@pytest.mark.parametrize("one", TRANSLATED, ids=lambda one: one.name)
def test_no_breaker_is_at_envoys_default_but_connections_to_processors(one: Set) -> None:
    for cluster in running(one)["static_resources"]["clusters"]:
        breakers = cluster.get("circuitBreakers") or cluster["circuit_breakers"]
        (limits,) = breakers["thresholds"]
        assert limits["maxRequests"] == limits["maxPendingRequests"] == 100_000
        assert limits["maxRetries"] == 1_024
        assert limits["maxConnections"] == (1_024 if cluster["name"] == PROCESSOR else 100_000)


def test_only_the_route_of_prompts_asks_the_processor() -> None:
    asks = {
        route["route"]["cluster"]: route.get("typedPerFilterConfig", {}).keys()
        for route in gateway_envoy.routes(running(BASE))
    }
    assert {name: bool(filters) for name, filters in asks.items()} == {
        ENGINES: True,
        UPLOADS: False,
    }


def test_aibrixs_route_stands_first_and_asks_the_processor_too() -> None:
    """Else the end of an answer would not be heard."""
    first, *others = gateway_envoy.routes(running(AIBRIX))
    assert first["route"]["cluster"] == "picked-pod"
    assert first["typedPerFilterConfig"].keys() == {gateway_envoy.EXT_PROC}
    assert len(others) == 2
