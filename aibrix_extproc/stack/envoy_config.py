"""The shipped Envoy files, with other addresses.

Owns what may differ between `envoy/*.yaml` as shipped and the Envoy of a demo or a test:
addresses, ports, the access log's path, the body mode and what goes with it. Everything else
stays as shipped, so that what is tested is what is shipped. Knows no process.
"""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import yaml

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import BodyMode

OVERRIDE_HOST: Final = "override-host.yaml"
ORIGINAL_DST: Final = "original-dst.yaml"

Config = dict[str, Any]

_METADATA: Final = {
    "metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}
}


class PickSource(StrEnum):
    """Where override_host looks for the pick. Both carry the same list."""

    HEADER = "header"
    METADATA = "metadata"


def shipped(name: str) -> Path:
    """The path of a file under `envoy/` of this checkout. Raises SettingsError without one."""
    path = Path(__file__).resolve().parents[2] / "envoy" / name
    if not path.is_file():
        raise SettingsError(
            f"{path} is missing: it is part of a checkout, not of the installed package. Run from "
            "a checkout, or name the file with --envoy-config"
        )
    return path


def load(path: Path) -> Config:
    """A bootstrap file as plain data. Raises SettingsError where it is none."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be used as an Envoy configuration: {error}") from None
    if not isinstance(config, dict) or "static_resources" not in config:
        raise SettingsError(f"{path} is no static Envoy configuration (no static_resources)")
    return config


def render(
    template: Path,
    *,
    listen: str,
    admin: str,
    extproc_addresses: Sequence[str],
    engine_addresses: Sequence[str] = (),
    body_mode: BodyMode = BodyMode.BUFFERED,
    failure_mode_allow: bool | None = None,
    message_timeout_s: float | None = None,
    access_log: str | None = None,
    pick_source: PickSource = PickSource.HEADER,
) -> Config:
    """The template with these addresses (each `ip:port`; port 0 lets Envoy choose one).

    `engine_addresses` is not used where the cluster `engines` is an ORIGINAL_DST.
    `failure_mode_allow` is left as shipped in BUFFERED, and false in duplex, where a body that
    is half sent cannot go on alone. `message_timeout_s` and `access_log` None: as shipped.
    `pick_source` counts for override_host alone.
    Raises SettingsError where the template lacks the parts that must change.
    """
    config = load(template)
    try:
        _addresses(config, listen, admin, extproc_addresses, engine_addresses)
        processor = ext_proc(config)
        if pick_source is PickSource.METADATA:
            _override_host(config)["override_host_sources"] = [_METADATA]
        if body_mode is BodyMode.DUPLEX:
            _duplex(processor)
        if failure_mode_allow is not None:
            processor["failure_mode_allow"] = failure_mode_allow
        if message_timeout_s is not None:
            processor["message_timeout"] = f"{message_timeout_s:g}s"
        if access_log is not None:
            connection_manager(config)["access_log"][0]["typed_config"]["path"] = access_log
    except (KeyError, IndexError, StopIteration) as error:
        raise SettingsError(f"{template} lacks a part that must change: {error!r}") from None
    return config


def connection_manager(config: Config) -> Config:
    """The HTTP connection manager of the one listener."""
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    manager: Config = chain["filters"][0]["typed_config"]
    return manager


def ext_proc(config: Config) -> Config:
    """The configuration of the ext_proc filter."""
    filters = connection_manager(config)["http_filters"]
    found: Config = next(f for f in filters if f["name"] == "envoy.filters.http.ext_proc")
    typed: Config = found["typed_config"]
    return typed


def cluster(config: Config, name: str) -> Config:
    """A static cluster by its name; StopIteration where there is none."""
    found: Config = next(c for c in config["static_resources"]["clusters"] if c["name"] == name)
    return found


def _override_host(config: Config) -> Config:
    policy = cluster(config, "engines")["load_balancing_policy"]["policies"][0]
    typed: Config = policy["typed_extension_config"]["typed_config"]
    return typed


def _addresses(
    config: Config,
    listen: str,
    admin: str,
    extproc_addresses: Sequence[str],
    engine_addresses: Sequence[str],
) -> None:
    config["static_resources"]["listeners"][0]["address"] = _address(listen)
    config["admin"]["address"] = _address(admin)
    cluster(config, "ext_proc")["load_assignment"] = _assignment("ext_proc", extproc_addresses)
    engines = cluster(config, "engines")
    if engines["type"] != "ORIGINAL_DST":
        engines["load_assignment"] = _assignment("engines", engine_addresses)


def _duplex(processor: Config) -> None:
    """What the Gateway API Inference Extension asks of a duplex processor."""
    processor["processing_mode"] |= {
        "request_body_mode": "FULL_DUPLEX_STREAMED",
        # Required with that mode: the last chunk may come as trailers.
        "request_trailer_mode": "SEND",
        # Without it the stream ends with the request's body, not with the answer, and the
        # processor cannot see a request end.
        "response_trailer_mode": "SEND",
    }
    processor["failure_mode_allow"] = False


def _address(address: str) -> Config:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _assignment(name: str, addresses: Sequence[str]) -> Config:
    endpoints = [{"endpoint": {"address": _address(a)}} for a in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
