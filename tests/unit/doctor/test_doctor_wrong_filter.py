"""The filter and its way to the processor in a real Envoy's own dump, wrong in one place each."""

from pathlib import Path

import pytest

from aibrix_extproc.stack.envoy_config import OVERRIDE_HOST
from tests.unit.doctor.dump_rig import DESTINATION, V1, Change, Json, codes_of, duplex, ids

CASES: list[tuple[str, Change, set[str]]] = [
    ("no ext_proc filter", lambda d: d.filters.pop(0), {"envoy-no-filter"}),
    ("the filter behind the router", lambda d: d.filters.reverse(), {"envoy-filter-order"}),
    ("no route for /v1/", lambda d: d.host["routes"].clear(), {"envoy-no-route"}),
    (
        "headers skipped",
        lambda d: d.mode.update(request_header_mode="SKIP"),
        {"envoy-request-headers"},
    ),
    ("no body", lambda d: d.mode.pop("request_body_mode"), {"envoy-body-mode"}),
    ("STREAMED", lambda d: d.mode.update(request_body_mode="STREAMED"), {"envoy-body-mode"}),
    (
        "BUFFERED_PARTIAL",
        lambda d: d.mode.update(request_body_mode="BUFFERED_PARTIAL"),
        {"envoy-body-mode"},
    ),
    (
        "the answer's headers skipped",
        lambda d: d.mode.update(response_header_mode="SKIP"),
        {"envoy-response-headers"},
    ),
    (
        "duplex without request trailers",
        lambda d: duplex(d, request_trailer_mode="SKIP"),
        {"envoy-duplex-request-trailers"},
    ),
    (
        "duplex without response trailers",
        lambda d: duplex(d, response_trailer_mode="SKIP"),
        {"envoy-duplex-response-trailers"},
    ),
    ("duplex, fail-open", lambda d: duplex(d, failure_mode_allow=True), {"envoy-duplex-fail-open"}),
    ("fail-closed", lambda d: d.processor.pop("failure_mode_allow"), {"envoy-fail-closed"}),
    (
        "the default message time-out",
        lambda d: d.processor.pop("message_timeout"),
        {"envoy-message-timeout"},
    ),
    (
        "a message time-out as long as a decision",
        lambda d: d.processor.update(message_timeout="1s"),
        {"envoy-message-timeout"},
    ),
    (
        "nothing stripped",
        lambda d: d.manager.pop("early_header_mutation_extensions"),
        {"envoy-headers-not-stripped"},
    ),
    (
        "two headers of three stripped",
        lambda d: d.manager["early_header_mutation_extensions"][0]["typed_config"][
            "mutations"
        ].pop(),
        {"envoy-headers-not-stripped"},
    ),
    (
        "stripped too late",
        lambda d: (
            d.manager.pop("early_header_mutation_extensions"),
            d.host.update(request_headers_to_remove=["target-pod", DESTINATION]),
        ),
        {"envoy-headers-not-stripped", "envoy-pick-removed"},
    ),
    (
        "the pick removed on its route",
        lambda d: d.route("picked").update(request_headers_to_remove=[DESTINATION.title()]),
        {"envoy-pick-removed"},
    ),
    (
        "the default buffer",
        lambda d: d.host.pop("request_body_buffer_limit"),
        {"envoy-buffer-limit"},
    ),
    (
        "a buffer of just the limit",
        lambda d: d.host.update(request_body_buffer_limit="16777216"),
        {"envoy-buffer-limit"},
    ),
    (
        "a buffer filter",
        lambda d: d.filters.insert(
            0,
            {
                "name": "envoy.filters.http.buffer",
                "typed_config": {
                    "@type": f"{V1}.filters.http.buffer.v3.Buffer",
                    "max_request_bytes": 65536,
                },
            },
        ),
        {"envoy-buffer-filter"},
    ),
    (
        "the default breakers",
        lambda d: d.cluster("ext_proc").pop("circuit_breakers"),
        {"envoy-breaker-requests", "envoy-breaker-retries"},
    ),
    (
        "a breaker of 1,024 requests",
        lambda d: d.thresholds("ext_proc").update(max_requests=1024),
        {"envoy-breaker-requests"},
    ),
    (
        "three retries at once",
        lambda d: d.thresholds("ext_proc").pop("max_retries"),
        {"envoy-breaker-retries"},
    ),
    (
        "no retry to another replica",
        lambda d: d.processor["grpc_service"].pop("retry_policy"),
        {"envoy-grpc-retry"},
    ),
    (
        "a retry to the same replica",
        lambda d: d.processor["grpc_service"]["retry_policy"].pop("retry_host_predicate"),
        {"envoy-grpc-retry-same-host"},
    ),
    (
        "LEAST_REQUEST among processors",
        lambda d: d.cluster("ext_proc").update(lb_policy="LEAST_REQUEST"),
        {"envoy-processor-balancing"},
    ),
    (
        "no health check",
        lambda d: d.cluster("ext_proc").pop("health_checks"),
        {"envoy-health-check"},
    ),
    (
        "a health check of another service",
        lambda d: d.cluster("ext_proc")["health_checks"][0].update(
            grpc_health_check={"service_name": "ext-proc"}
        ),
        {"envoy-health-check-name"},
    ),
    (
        "a health check over HTTP",
        lambda d: (
            d.cluster("ext_proc")["health_checks"][0].pop("grpc_health_check"),
            d.cluster("ext_proc")["health_checks"][0].update(http_health_check={"path": "/readyz"}),
        ),
        {"envoy-health-check-name"},
    ),
    (
        "a cluster that is not there",
        lambda d: d.processor["grpc_service"]["envoy_grpc"].update(cluster_name="extproc"),
        {"envoy-processor-cluster"},
    ),
]


@pytest.mark.parametrize(("what", "change", "codes"), CASES, ids=ids(CASES))
async def test_each_wrong_filter_is_named(
    what: str, change: Change, codes: set[str], dumps: dict[str, Json], tmp_path: Path
) -> None:
    assert await codes_of(tmp_path, dumps[OVERRIDE_HOST], change) == codes
