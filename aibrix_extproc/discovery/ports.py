"""Addresses and ports: pure text and numbers.

Owns how `ip:port` is read and written, which ports a rank's events and replays are on, and when
those ranges collide. Knows no pod, no file and no Kubernetes.
"""

import functools
import ipaddress
from typing import Final

from aibrix_extproc.discovery.pods import Rank

MAX_PORT: Final = 65535
MAX_RANKS: Final = 1024
"""More data-parallel ranks in one pod are taken for a slip of the pen."""


def join_host_port(ip: str, port: int) -> str:
    """`10.0.0.1:8000`; an IPv6 address gets its brackets."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def split_host_port(address: str) -> tuple[str, int]:
    """The IP (without brackets) and port of what `join_host_port` or `parse_address` made."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def canonical_ip(text: str) -> str:
    """An IP address in its one usual spelling, without brackets.

    Raises ValueError where it is none, or one that nobody can connect to.
    """
    if "%" in text:
        raise ValueError(f"{text!r} names an interface: write a routable address")
    ip = ipaddress.ip_address(text)
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"{text!r} is no address of a pod: write the pod's own IP")
    return str(ip)


def parse_address(text: str) -> str:
    """`ip:port` in its one usual spelling.

    Only IP addresses: Envoy's ORIGINAL_DST cluster connects to what `target-pod` says and
    resolves no name. Raises ValueError with a message that says what to write.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(
            f"{text!r} is not ip:port: write for example 10.0.0.1:8000 or [2001:db8::1]:8000"
        )
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= MAX_PORT:
        raise ValueError(f"{text!r} has no valid port: write a number from 1 to {MAX_PORT}")
    bare = host[1:-1] if bracketed else host
    try:
        ip = canonical_ip(bare)
    except ValueError as error:
        if "%" not in bare and _looks_like_ip(bare):
            raise
        raise ValueError(
            f"{text!r} is a host name: write the pod's IP address, because Envoy connects to "
            "exactly what is written here and resolves no names"
        ) from error
    return join_host_port(ip, int(port))


@functools.lru_cache(maxsize=16_384)
def is_address(text: str) -> bool:
    """Whether it is `ip:port` in its usual spelling, and nothing else: fit for a header."""
    try:
        return parse_address(text) == text
    except ValueError:
        return False


def _looks_like_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def collision(event_port: int, replay_port: int, ranks: int) -> str | None:
    """Why the ports of `ranks` ranks cannot be right, and what to change; None where they can.

    vLLM puts rank r on `event_port + r` and its replays on `replay_port + r`, so that the usual
    5557 and 5558 collide as soon as there are two ranks.
    """
    if abs(event_port - replay_port) >= ranks:
        return None
    return (
        f"event ports {_span(event_port, ranks)} and replay ports {_span(replay_port, ranks)} "
        f"overlap: rank r uses port + r, so keep them at least {ranks} apart, "
        f"for example {event_port} and {_apart(event_port, ranks)}"
    )


def out_of_range(port: int, ranks: int) -> str | None:
    """Why the last rank's port does not exist; None where it does."""
    if port + ranks - 1 <= MAX_PORT:
        return None
    return (
        f"port {port} with {ranks} ranks goes past {MAX_PORT}: use at most {MAX_PORT + 1 - ranks}"
    )


def rank_endpoints(
    ip: str, event_port: int | None, replay_port: int | None, ranks: int
) -> tuple[Rank, ...]:
    """Ranks 0 to `ranks - 1` with their ZMQ endpoints; a port of None gives none."""
    return tuple(
        Rank(
            rank=r,
            event_endpoint=_endpoint(ip, event_port, r),
            replay_endpoint=_endpoint(ip, replay_port, r),
        )
        for r in range(ranks)
    )


def tcp_endpoint(ip: str, port: int) -> str:
    """ZMQ's `tcp://ip:port`."""
    return f"tcp://{join_host_port(ip, port)}"


def _endpoint(ip: str, port: int | None, rank: int) -> str | None:
    return None if port is None else tcp_endpoint(ip, port + rank)


def _span(port: int, ranks: int) -> str:
    return str(port) if ranks == 1 else f"{port}-{port + ranks - 1}"


def _apart(port: int, ranks: int) -> int:
    """A replay port that goes with this event port: 100 on, where there is room."""
    gap = max(100, ranks)
    return port + gap if port + gap + ranks - 1 <= MAX_PORT else port - gap
