"""Misconfigured Envoys: a real Envoy's own config dump, changed in one place; each is named.

Changes that Envoy itself takes are also made in its file and shown by the real Envoy.
"""

import copy
import json
from pathlib import Path

import aiohttp
import pytest

from aibrix_extproc.doctor.catalog import run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.findings import Area, Severity
from aibrix_extproc.settings import BodyMode
from aibrix_extproc.stack import envoy_config
from aibrix_extproc.stack.envoy_config import ORIGINAL_DST, OVERRIDE_HOST
from aibrix_extproc.stack.processes import Processes
from aibrix_extproc.stack.start import start_envoy
from tests.envoy_binary import envoy_path
from tests.support import free_port
from tests.unit.doctor.doctor_rig import examine_dump, real_dump, told
from tests.unit.doctor.dump_rig import (
    DESTINATION,
    EXT_PROC,
    V1,
    Change,
    Dumped,
    Json,
    codes_of,
    ids,
    metadata_source,
    off,
    withheld,
)

OVERRIDE: list[tuple[str, Change, set[str]]] = [
    ("no replica", lambda d: d.hosts("ext_proc").clear(), {"envoy-processor-cluster"}),
    (
        "another port",
        lambda d: d.hosts("ext_proc")[0]["endpoint"]["address"]["socket_address"].update(
            port_value=50051
        ),
        {"envoy-processor-port"},
    ),
    (
        "HTTP/1 to the processor",
        lambda d: d.cluster("ext_proc").pop("typed_extension_protocol_options"),
        {"envoy-processor-http2"},
    ),
    (
        "TLS on one side",
        lambda d: d.cluster("ext_proc").update(
            transport_socket={"name": "envoy.transport_sockets.tls"}
        ),
        {"envoy-processor-tls"},
    ),
    (
        "another balancing policy",
        lambda d: d.cluster("engines").pop("load_balancing_policy"),
        {"envoy-pick-unused"},
    ),
    (
        "a route to a cluster that is not there",
        lambda d: d.route("unpicked")["route"].update(cluster="llm"),
        {"envoy-engines-cluster"},
    ),
    (
        "a picked route to a cluster that is not there",
        lambda d: d.route("picked")["route"].update(cluster="llm"),
        {"envoy-engines-cluster"},
    ),
    (
        "another header",
        lambda d: d.override.update(override_host_sources=[{"header": "x-target"}]),
        {"envoy-override-host-source"},
    ),
    (
        "header and metadata",
        lambda d: d.override["override_host_sources"].append(metadata_source()),
        {"envoy-override-host-sources"},
    ),
    (
        "metadata that may not be set",
        lambda d: (
            d.override.update(override_host_sources=[metadata_source()]),
            d.processor["metadata_options"].pop("receiving_namespaces"),
        ),
        {"envoy-receiving-namespaces"},
    ),
    (
        "the route is kept",
        lambda d: d.processor.update(route_cache_action="RETAIN"),
        {"envoy-route-cache"},
    ),
    (
        "the route is kept, in older words",
        lambda d: d.processor.update(disable_clear_route_cache=True),
        {"envoy-route-cache"},
    ),
    (
        "the processor off for /v1/",
        lambda d: d.route("unpicked").update(typed_per_filter_config=off(EXT_PROC)),
        {"envoy-route-disabled"},
    ),
    (
        "a route that overrides the body mode",
        lambda d: d.route("unpicked").update(
            typed_per_filter_config={
                EXT_PROC: {
                    "@type": f"{V1}.filters.http.ext_proc.v3.ExtProcPerRoute",
                    "overrides": {"processing_mode": {"request_body_mode": "NONE"}},
                }
            }
        ),
        {"envoy-body-mode"},
    ),
    (
        "the processor off for all",
        lambda d: d.host.update(typed_per_filter_config=off(EXT_PROC)),
        {"envoy-route-disabled"},
    ),
    (
        "the filter off, and on nowhere",
        lambda d: d.filters[0].update(disabled=True),
        {"envoy-route-disabled"},
    ),
    (
        "credentials for the processor",
        lambda d: d.processor.pop("forward_rules"),
        {"envoy-secrets-forwarded"},
    ),
    (
        "an allow list without the path",
        lambda d: withheld(d, ":path"),
        {"envoy-headers-withheld"},
    ),
    (
        "an allow list of before sessions",
        lambda d: withheld(d, "x-session-id"),
        {"envoy-preferences-withheld"},
    ),
    (
        "the default route time-out",
        lambda d: d.route("picked")["route"].pop("timeout"),
        {"envoy-route-timeout"},
    ),
    (
        "the default idle time-out",
        lambda d: d.manager.pop("stream_idle_timeout"),
        {"envoy-stream-idle-timeout"},
    ),
    (
        "a pod that Envoy does not know",
        lambda d: d.hosts("engines").pop(),
        {"envoy-pod-unknown"},
    ),
    (
        "a host that is no pod",
        lambda d: d.hosts("engines").append(
            {
                "endpoint": {
                    "address": {"socket_address": {"address": "10.9.9.9", "port_value": 8000}}
                }
            }
        ),
        {"envoy-host-unknown"},
    ),
    (
        "retries of what an engine has accepted",
        lambda d: d.host["retry_policy"].update(retry_on="5xx,reset"),
        {"envoy-engine-retry-unsafe"},
    ),
    ("no retry to another pod", lambda d: d.host.pop("retry_policy"), {"envoy-engine-retries"}),
    (
        "one retry for three pods",
        lambda d: d.host["retry_policy"].update(num_retries=1),
        {"envoy-engine-retries"},
    ),
    (
        "a retry to the same pod",
        lambda d: d.host["retry_policy"].pop("retry_host_predicate"),
        {"envoy-engine-retry-same-host"},
    ),
    (
        "the default breakers of engines",
        lambda d: d.cluster("engines").pop("circuit_breakers"),
        {"envoy-engine-breakers"},
    ),
    (
        "a filter that only watches",
        lambda d: d.processor.update(observability_mode=True),
        {"envoy-observability-mode"},
    ),
    (
        "rules that forbid the pick",
        lambda d: d.processor.update(mutation_rules={"disallow_all": True}),
        {"envoy-mutation-rules"},
    ),
    (
        "rules that forbid the pick by name",
        lambda d: d.processor.update(
            mutation_rules={"disallow_expression": {"regex": "x-gateway-.*"}}
        ),
        {"envoy-mutation-rules"},
    ),
    (
        "answers of ours that nobody gets",
        lambda d: d.processor.update(disable_immediate_response=True),
        {"envoy-immediate-response"},
    ),
    (
        "no samples",
        lambda d: d.processor.pop("allow_mode_override"),
        {"envoy-mode-override"},
    ),
    (
        "who served is not told",
        lambda d: d.processor.pop("response_attributes"),
        {"envoy-upstream-address"},
    ),
    (
        "an open admin page",
        lambda d: d.section("Bootstrap")["bootstrap"]["admin"]["address"]["socket_address"].update(
            address="0.0.0.0"
        ),
        {"envoy-admin-open"},
    ),
]

ORIGINAL: list[tuple[str, Change, set[str]]] = [
    (
        "no header for ORIGINAL_DST",
        lambda d: d.cluster("engines").pop("original_dst_lb_config"),
        {"envoy-original-dst-header"},
    ),
    (
        "another header for ORIGINAL_DST",
        lambda d: d.cluster("engines")["original_dst_lb_config"].update(http_header_name="x-pod"),
        {"envoy-original-dst-header"},
    ),
    (
        "a list of pods for ORIGINAL_DST",
        lambda d: d.cluster("engines")["original_dst_lb_config"].update(
            http_header_name=DESTINATION
        ),
        {"envoy-original-dst-alternatives"},
    ),
    (
        "an open proxy",
        lambda d: d.manager.pop("early_header_mutation_extensions"),
        {"envoy-headers-not-stripped"},
    ),
    (
        "nothing for requests without a pick, and the pick balanced away",
        lambda d: d.route("picked")["route"].update(cluster="nowhere"),
        {"envoy-pick-unused"},
    ),
]


@pytest.mark.parametrize(("what", "change", "codes"), OVERRIDE, ids=ids(OVERRIDE))
async def test_each_is_named(
    what: str, change: Change, codes: set[str], dumps: dict[str, Json], tmp_path: Path
) -> None:
    assert await codes_of(tmp_path, dumps[OVERRIDE_HOST], change) == codes


@pytest.mark.parametrize(("what", "change", "codes"), ORIGINAL, ids=ids(ORIGINAL))
async def test_each_is_named_with_original_dst(
    what: str, change: Change, codes: set[str], dumps: dict[str, Json], tmp_path: Path
) -> None:
    assert await codes_of(tmp_path, dumps[ORIGINAL_DST], change) == codes


async def test_a_message_timeout_hardly_above_a_decision_is_yellow(
    dumps: dict[str, Json], tmp_path: Path
) -> None:
    document = copy.deepcopy(dumps[OVERRIDE_HOST])
    Dumped(document).processor["message_timeout"] = "1.100s"
    findings = await examine_dump(tmp_path, document)
    assert told(findings) == {"envoy-message-timeout": Severity.YELLOW}


async def test_limits_follow_the_processors_own(dumps: dict[str, Json], tmp_path: Path) -> None:
    environment = {
        "AIBRIX_EXTPROC_MAX_BODY_BYTES": "64MiB",
        "AIBRIX_EXTPROC_DECISION_TIMEOUT": "3s",
        "AIBRIX_EXTPROC_MAX_STREAMS": "200000",
        "AIBRIX_EXTPROC_ALTERNATIVES": "5",
        "AIBRIX_EXTPROC_GRPC_ADDRESS": ":50052",
    }
    findings = await examine_dump(tmp_path, dumps[OVERRIDE_HOST], environment)
    assert told(findings) == {
        "envoy-buffer-limit": Severity.RED,
        "envoy-message-timeout": Severity.RED,
        "envoy-breaker-requests": Severity.YELLOW,
        "envoy-engine-retries": Severity.YELLOW,
    }


async def test_alternatives_of_one_fit_a_list_for_original_dst(
    dumps: dict[str, Json], tmp_path: Path
) -> None:
    document = copy.deepcopy(dumps[ORIGINAL_DST])
    config = Dumped(document).cluster("engines")["original_dst_lb_config"]
    config["http_header_name"] = DESTINATION
    environment = {"AIBRIX_EXTPROC_ALTERNATIVES": "1"}
    assert told(await examine_dump(tmp_path, document, environment)) == {}


def wrong(config: Json) -> None:
    """Things that Envoy takes, and that break or endanger requests."""
    processor = envoy_config.ext_proc(config)
    processor["message_timeout"] = "0.200s"
    processor["processing_mode"]["request_body_mode"] = "STREAMED"
    del envoy_config.connection_manager(config)["early_header_mutation_extensions"]
    del envoy_config.cluster(config, "ext_proc")["circuit_breakers"]


async def test_a_real_envoy_that_runs_with_them_is_found_out(tmp_path: Path) -> None:
    dump = await real_dump(OVERRIDE_HOST, change=wrong)
    assert set(told(await examine_dump(tmp_path, dump))) == {
        "envoy-message-timeout",
        "envoy-body-mode",
        "envoy-headers-not-stripped",
        "envoy-breaker-requests",
        "envoy-breaker-retries",
    }


async def test_hosts_that_fail_their_health_checks_are_named(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    pods = [
        {"name": f"engine-{n}", "model": "tiny", "address": f"127.0.0.1:{port}"}
        for n, port in enumerate(ports[1:])
    ]
    config = envoy_config.render(
        envoy_config.shipped(OVERRIDE_HOST),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=[f"127.0.0.1:{ports[0]}"],
        engine_addresses=[pod["address"] for pod in pods],
        access_log="/dev/null",
    )
    path = tmp_path / "pods.yaml"
    path.write_text(json.dumps({"pods": pods}))
    environment = {
        "AIBRIX_EXTPROC_ENDPOINTS_FILE": str(path),
        "AIBRIX_EXTPROC_GRPC_ADDRESS": f"127.0.0.1:{ports[0]}",
    }
    async with aiohttp.ClientSession() as session:
        with Processes() as processes:
            envoy = await start_envoy(processes, session, envoy_path(), config)
            asked = Asked(envoy_admin=envoy.admin_url, timeout_s=2.0, listen_s=0.05)
            findings = run_checks(await collect(asked, environment))
    assert told([f for f in findings if f.area is Area.ENVOY]) == {
        "envoy-processor-unhealthy": Severity.RED,
        "envoy-engine-unhealthy": Severity.YELLOW,
    }


async def test_an_admin_page_that_is_away_is_named(tmp_path: Path) -> None:
    asked = Asked(envoy_admin=f"http://127.0.0.1:{free_port()}", timeout_s=0.5)
    findings = run_checks(await collect(asked, {}))
    assert set(told(findings)) == {"envoy-unreadable"}


async def test_the_same_is_found_in_its_file(tmp_path: Path) -> None:
    config = envoy_config.render(
        envoy_config.shipped(OVERRIDE_HOST),
        listen="127.0.0.1:0",
        admin="127.0.0.1:0",
        extproc_addresses=["127.0.0.1:50052"],
        engine_addresses=["127.0.0.1:8000", "127.0.0.1:8001"],
        body_mode=BodyMode.BUFFERED,
    )
    wrong(config)
    assert "envoy-body-mode" in told(await examine_dump(tmp_path, config))


@pytest.mark.parametrize("text", ["", "pods: []", "{", '{"configs": []}', "[1, 2]"])
async def test_what_is_no_configuration_is_said(text: str, tmp_path: Path) -> None:
    assert set(told(await examine_dump(tmp_path, text))) == {"envoy-unreadable"}
