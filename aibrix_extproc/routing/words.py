"""The words for a decision in the labels of metrics: our reasons, and AIBrix's names. Pure."""

from typing import Final

from aibrix_extproc.routing.types import Decision

REASONS: Final = {
    "prefix": "it holds more of the prompt than another, and should finish it first",
    "load": "it has the least to do",
    "imbalance": "pods were out of balance, so that load alone counted",
    "kv_cache": "its KV cache is least used",
    "kv_cache_partly": "its KV cache is least used, as far as engines told it",
    "kv_cache_unknown": "no engine told the use of its KV cache; it has the fewest requests",
    "two_choices": "the less busy of two drawn at random",
    "session": "the session is its own",
    "session_full": "the session's own is full, and this is the next one that is not",
    "no_session": "the request names no session; it has the fewest requests",
    "random": "by lot",
    "only": "the only candidate",
    "overload": "those that the strategy prefers could not begin in time",
}
"""Every `Decision.reason`, and what it says of the chosen one."""


def match_bucket(matched_tokens: int, prompt_tokens: int) -> str:
    """The share of the prompt that is reused, in AIBrix's buckets.

    `100` means every token that an engine can reuse at all is rarely reached: the last token is
    always computed.
    """
    percent = 100 * matched_tokens // prompt_tokens if prompt_tokens else 0
    if percent <= 0:
        return "0"
    for limit, name in ((25, "1-25"), (50, "26-50"), (75, "51-75"), (99, "76-99")):
        if percent <= limit:
            return name
    return "100"


def selection(decision: Decision) -> str:
    """AIBrix's words for what made the choice, and ours where it has none."""
    if decision.reason not in ("prefix", "load"):
        return decision.reason
    if decision.chosen.reusable_tokens:
        return "prefix_match"
    held = any(scored.reusable_tokens for scored in decision.ranking)
    return "prefix_match_skipped" if held else "least_request_fallback"
