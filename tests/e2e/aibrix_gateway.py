"""AIBrix's gateway as a cluster has it: its wiring in Envoy, and a stand-in of its Go plugin.

Written after AIBrix v0.6.0 (`config/gateway`, `pkg/plugins/gateway`): what Envoy Gateway makes of
its HTTPRoutes, EnvoyExtensionPolicy and EnvoyPatchPolicy, as one static configuration. Each step of
docs/migration.md is a virtual host of it.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from aibrix_extproc.stack.envoy_config import Config

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
_TYPES: Final = "type.googleapis.com/envoy.extensions.filters"
OURS_FIRST, PLUGIN, OURS_LAST, OURS = "ours-first", "plugin", "ours-last", "ours"
STEPS: Final = {
    "before": {PLUGIN},
    "shadow": {OURS_FIRST, PLUGIN},
    "shadow-last": {PLUGIN, OURS_LAST},
    "switched": {OURS},
}
"""Which processors each virtual host has, in their order: the host is the step's name."""


@dataclass
class GoPlugin:
    """With `routing-strategy` it picks `pod`; without, it names the model, whose HTTPRoute and
    Service balance. The body goes on as a mutation with the same bytes."""

    pod: str
    address: str = ""
    server: Any = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        process = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Process": process})
        self.server.add_generic_rpc_handlers((handler,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop(None)

    async def _process(
        self, messages: AsyncIterator[Any], _context: Any
    ) -> AsyncIterator[pb.ProcessingResponse]:
        strategy = ""
        async for message in messages:
            reply = pb.ProcessingResponse()
            kind = message.WhichOneof("request")
            if kind == "request_headers":
                for header in message.request_headers.headers.headers:
                    if header.key == "routing-strategy":
                        strategy = header.raw_value.decode()
                common = reply.request_headers.response
                common.clear_route_cache = True
                _set(common, {"x-went-into-req-headers": "true"})
            elif kind == "request_body":
                body = message.request_body.body
                common = reply.request_body.response
                picked = {"routing-strategy": strategy, "target-pod": self.pod}
                model = {"model": json.loads(body)["model"]}
                _set(common, picked if strategy else model)
                common.body_mutation.body = body
            elif kind == "response_headers":
                _set(reply.response_headers.response, {"x-from": "plugin"})
            else:
                reply.response_body.SetInParent()
            yield reply


def _set(common: pb.CommonResponse, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        header = common.header_mutation.set_headers.add().header
        header.key, header.raw_value = name, value.encode()


def config(plugin: str, shadow: str, live: str, engines: Sequence[str]) -> Config:
    """Envoy with a virtual host for each step. `shadow` and `live` are two of our processors."""
    processors = {OURS_FIRST: shadow, PLUGIN: plugin, OURS_LAST: shadow, OURS: live}
    clusters = [_cluster(name, [address], http2=True) for name, address in processors.items()]
    clusters += [
        {
            "name": "original_destination_cluster",
            "type": "ORIGINAL_DST",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "6s",
            "original_dst_lb_config": {"use_http_header": True, "http_header_name": "target-pod"},
        },
        _cluster("service-of-the-model", engines),
        # The HTTPRoute aibrix-reserved-router names the plugin's gRPC port: no engine is there.
        _cluster("reserved-router", [plugin]),
    ]
    manager = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "http_filters": [*(_ext_proc(name) for name in processors), _router()],
        "route_config": {"virtual_hosts": [_host(step) for step in STEPS]},
    }
    filters = [{"name": "hcm", "typed_config": manager}]
    listener = {
        "name": "http",
        "address": _address("127.0.0.1:0"),
        "filter_chains": [{"filters": filters}],
    }
    return {
        "admin": {"address": _address("127.0.0.1:0")},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _host(step: str) -> Config:
    disabled = {
        f"ext-proc-{name}": {
            "@type": f"{_TYPES}.http.ext_proc.v3.ExtProcPerRoute",
            "disabled": True,
        }
        for name in (OURS_FIRST, PLUGIN, OURS_LAST, OURS)
        if name not in STEPS[step]
    }
    by_header = {"string_match": {"safe_regex": {"regex": ".*"}}}
    return {
        "name": step,
        "domains": [step],
        "typed_per_filter_config": disabled,
        "routes": [
            {
                "match": {"prefix": "/", "headers": [{"name": "routing-strategy", **by_header}]},
                "route": {"cluster": "original_destination_cluster", "timeout": "120s"},
            },
            {
                "match": {"prefix": "/v1/", "headers": [{"name": "model", **by_header}]},
                "route": {"cluster": "service-of-the-model"},
            },
            {"match": {"prefix": "/v1/"}, "route": {"cluster": "reserved-router"}},
        ],
    }


def _ext_proc(name: str) -> Config:
    return {
        "name": f"ext-proc-{name}",
        "typed_config": {
            "@type": f"{_TYPES}.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": name}},
            "message_timeout": "60s",
            "processing_mode": {
                "request_body_mode": "BUFFERED",
                "response_body_mode": "STREAMED" if name == PLUGIN else "NONE",
            },
        },
    }


def _router() -> Config:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.http.router.v3.Router"},
    }


def _cluster(name: str, addresses: Sequence[str], http2: bool = False) -> Config:
    made: Config = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(a)}} for a in addresses]}
            ],
        },
    }
    if http2:
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return made


def _address(address: str) -> Config:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
