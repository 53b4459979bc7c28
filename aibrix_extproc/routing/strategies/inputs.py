"""Settings with which the chosen strategy can never go by its own rule. Pure."""

from collections.abc import Iterator

from aibrix_extproc.routing.strategies.least_kv_cache import LeastKvCache
from aibrix_extproc.routing.strategies.session_affinity import SessionAffinity
from aibrix_extproc.settings import Settings


def lacking(settings: Settings) -> Iterator[tuple[str, str]]:
    """The variable, and what it takes from the strategy of `ROUTING_ALGORITHM`.

    The server starts all the same: load decides then, and a client may name another strategy.
    """
    chosen = settings.routing_algorithm
    if chosen == SessionAffinity.name and not settings.trust_client_headers:
        yield (
            "AIBRIX_EXTPROC_TRUST_CLIENT_HEADERS",
            f"{chosen} goes by a header of clients, which is not read while this is false",
        )
    if chosen != LeastKvCache.name:
        return
    interval_s, max_age_s = settings.kv_usage_interval_s, settings.kv_usage_max_age_s
    if not interval_s:
        yield (
            "AIBRIX_EXTPROC_KV_USAGE_INTERVAL",
            f"{chosen} goes by what engines say, and they are not asked while this is 0",
        )
    elif max_age_s <= interval_s:
        yield (
            "AIBRIX_EXTPROC_KV_USAGE_MAX_AGE",
            f"what engines say is too old after {max_age_s:g} s, and they are asked each "
            f"{interval_s:g} s: {chosen} goes without it in between",
        )
