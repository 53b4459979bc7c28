"""A prompt that is to be tokenized, and when two are the same.

Owns what of a request decides its token ids. Knows no HTTP and does not read bodies (`openai`
does), nor how the ids are got (`tokenizer`).
"""

import secrets
from array import array
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec
import xxhash
from msgspec import Raw

NOT_PROMPT: Final = frozenset(
    {
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "length_penalty",
        "logit_bias",
        "logprob_token_ids",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "min_p",
        "min_tokens",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "priority",
        "prompt_cache_key",
        "prompt_logprobs",
        "repetition_penalty",
        "request_id",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "safety_identifier",
        "seed",
        "service_tier",
        "session_id",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_token_ids",
        "store",
        "stream",
        "stream_interval",
        "stream_options",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
    }
)
"""Fields that never change the token ids (vLLM 0.32). Any other field is part of the cache key,
an unknown one too: at worst a prompt is tokenized twice."""

_KEY_SEED: Final = secrets.randbits(64)  # a client cannot prepare two prompts with one key


class PromptKind(StrEnum):
    """What has to be done for the ids: apply a chat template, encode a text, or nothing."""

    CHAT = "chat"
    COMPLETION = "completion"
    TOKENS = "tokens"


class Prompt(msgspec.Struct, frozen=True, eq=False):
    """A prompt to be tokenized. Two prompts are equal where their `cache_key` is."""

    kind: PromptKind
    model: str
    body: bytes
    """The client's body, unchanged."""
    cache_key: bytes
    """16 bytes over everything that may decide the tokens; its value differs between processes."""
    fields: Mapping[str, Raw] = msgspec.field(default_factory=dict)
    """The top-level fields of `body`, as slices of it."""
    text: str | None = None
    """COMPLETION: the text, the first one of a list."""
    token_ids: "array[int] | None" = None
    """TOKENS: the ids ('I'), the first list of a list of lists."""
    prompts: int = 1
    """How many prompts the body holds; only the first is routed by."""
    truncate_prompt_tokens: int | None = None
    """Tokens that the engine keeps; -1: what fits beside `max_output_tokens`; None: all."""
    truncate_keeps_first: bool = False
    """True for `truncation_side: right`; else the last tokens are kept."""
    max_output_tokens: int = 0
    """What vLLM takes off the context length before it truncates to -1."""
    add_special_tokens: bool = True
    """COMPLETION only."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and self.cache_key == other.cache_key

    def __hash__(self) -> int:
        return hash(self.cache_key)

    def __repr__(self) -> str:
        """Without the text: it may come into a log."""
        return f"Prompt({self.kind}, {len(self.body)} bytes)"


def cache_key(
    kind: PromptKind,
    fields: Mapping[str, Raw],
    truncate: int | None,
    first: memoryview | None = None,
) -> bytes:
    """A digest of all fields but NOT_PROMPT, sorted by name; `first` stands for the prompt.

    Each piece goes in with its length, so that no two lists of pieces read the same. 128 bits:
    among a billion prompts the odds of one accidental collision are below 1 in 10^20.
    """
    digest = xxhash.xxh3_128(kind.encode(), seed=_KEY_SEED)
    # What fits the context depends on the length asked for, so then it decides the tokens.
    counted = ("max_tokens", "max_completion_tokens") if truncate == -1 else ()
    for name in sorted(fields):
        if name in NOT_PROMPT and name not in counted:
            continue
        value = first if name == "prompt" and first is not None else memoryview(fields[name])
        label = name.encode()
        digest.update(b"%d:%d:" % (len(label), len(value)))
        digest.update(label)
        digest.update(value)
    return digest.digest()
