"""The command line of the endpoint-picker suite: which picker, and what is known of it.

Owns the options' names, their checks and the line in pytest's header. Knows no vector's content.
"""

from pathlib import Path
from typing import Final

import pytest

from tests.contract.picker.exchange import Target
from tests.contract.picker.vectors import PROFILES, Level, Mode

_MODES: Final = ("buffered", "duplex", "both")


def add_to(parser: pytest.Parser) -> None:
    """The options; docs/contract.md explains them."""
    group = parser.getgroup("endpoint-picker contract (docs/contract.md)")
    group.addoption("--target", metavar="HOST:PORT", help="an endpoint picker that runs already")
    group.addoption("--target-model", metavar="NAME", default="", help="a model that it serves")
    group.addoption(
        "--target-pods",
        metavar="IP:PORT,…",
        default="",
        help="the endpoints that it may pick for that model, divided by commas",
    )
    group.addoption(
        "--target-mode", choices=_MODES, default="both", help="body modes that it is asked in"
    )
    group.addoption(
        "--target-profile",
        choices=tuple(PROFILES),
        default=None,
        help="epp (with --target the default): the protocol and Envoy; aibrix: this server's own "
        "choices too",
    )
    group.addoption(
        "--target-ca",
        metavar="FILE",
        default="",
        help="PEM of the authority of its certificate: it is asked over TLS",
    )
    group.addoption(
        "--target-timeout", type=float, metavar="SECONDS", default=10.0, help="of one reply (10)"
    )


def has_target(config: pytest.Config) -> bool:
    """Whether the user named a picker of his own."""
    return bool(config.getoption("--target", default=None))


def report(config: pytest.Config) -> str | None:
    """The line in pytest's header; None without a target."""
    if not has_target(config):
        return None
    target = target_of(config)
    known = [
        f"{name} {value}" if value else f"no {name} (vectors that need it are skipped)"
        for name, value in (("--target-model", target.model), ("--target-pods", target.pods))
    ]
    return (
        f"endpoint picker at {target.address}, profile {profile_of(config)}, {', '.join(known)}; "
        "tests of tests/contract that drive no target are deselected"
    )


def target_of(config: pytest.Config) -> Target:
    """The picker that the user named. Raises pytest.UsageError that says what to write."""
    address = config.getoption("--target")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise pytest.UsageError(f"--target must be host:port, not {address!r}")
    text = config.getoption("--target-pods")
    pods = tuple(part for piece in text.split(",") if (part := piece.strip()))
    for pod in pods:
        if not pod.rpartition(":")[0] or not pod.rpartition(":")[2].isdigit():
            raise pytest.UsageError(f"--target-pods must be ip:port, not {pod!r}")
    timeout_s = config.getoption("--target-timeout")
    model = config.getoption("--target-model")
    return Target(address, model, pods, timeout_s, _authority(config.getoption("--target-ca")))


def _authority(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise pytest.UsageError(f"--target-ca: {error}") from None


def profile_of(config: pytest.Config) -> str:
    """`epp` for a picker of the user's, `aibrix` for this server, unless said otherwise."""
    named: str | None = config.getoption("--target-profile", default=None)
    return named or ("epp" if has_target(config) else "aibrix")


def levels_of(config: pytest.Config) -> frozenset[Level]:
    """The levels that are run."""
    return PROFILES[profile_of(config)]


def modes_of(config: pytest.Config) -> frozenset[Mode]:
    """The body modes that are run."""
    named = config.getoption("--target-mode", default="both")
    both = (Mode.BUFFERED, Mode.DUPLEX)
    return frozenset({Mode.ANY, *(both if named == "both" else (Mode(named),))})
