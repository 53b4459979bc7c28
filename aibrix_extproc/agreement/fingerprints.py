"""Which pods of a model give the same token ids for one fixed text and one fixed chat.

Pure. Owns the texts, what is compared, and who is named where they differ. A fingerprint is a
digest of ids; the texts are ours, so that no prompt of a client is kept or sent.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec

TEXT: Final = (
    "The quick brown fox: 12345 + 67.89 = 12412.89!\n\n"
    "\tdef f(x):  return x**2   # e\u0301t\u00e9, na\u00efve, \u6771\u4eac, \U0001f600 <|end|>"
)
"""Letters, digits, runs of spaces, accents in both normal forms, characters of several bytes, and
what looks like a special token: where tokenizers differ, they differ in one of these."""

CHAT: Final = (
    {"role": "system", "content": "You are a probe."},
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": "  42 \u2713 "},
    {"role": "user", "content": "and again"},
)
"""Every role, a turn that is over, and a text with spaces at its ends: what templates treat in
ways of their own."""


class _Tokenized(msgspec.Struct):
    tokens: list[int]


_tokens_of: Final = msgspec.json.Decoder(_Tokenized).decode


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one tokenizer made of both; None where it would not (a model without a template)."""

    text: str | None
    chat: str | None


def ids_of(reply: bytes) -> "array[int] | None":
    """The ids in a reply of `/tokenize`; None where there are none."""
    try:
        return array("I", _tokens_of(reply).tokens)
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError, TypeError):
        return None


def digest(ids: "array[int]") -> str:
    """A short name of a row of ids."""
    return hashlib.blake2b(ids.tobytes(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Difference:
    """Tokenizers of one model that do not agree with most of the others."""

    what: str
    """`text` (the tokenizer itself) or `chat` (the chat template alone)."""
    odd: tuple[str, ...]
    """Who differs from most, sorted. Of two equal halves the one whose first name sorts last."""
    others: tuple[str, ...]


class Fingerprints:
    """Of every tokenizer by model. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Fingerprint]] = {}

    def learn(self, model: str, who: str, found: Fingerprint) -> bool:
        """True where `who` had another one before."""
        known = self._known.setdefault(model, {})
        before = known.get(who)
        known[who] = found
        return before is not None and before != found

    def versions(self, model: str) -> frozenset[Fingerprint]:
        """The different ones of a model: one where all agree."""
        return frozenset(self._known.get(model, {}).values())

    def models(self) -> Collection[str]:
        return tuple(self._known)

    def forget(self, model: str, who: str) -> None:
        """It is gone."""
        known = self._known.get(model)
        if known is not None:
            known.pop(who, None)
            if not known:
                del self._known[model]

    def difference(self, model: str) -> Difference | None:
        """Who does not agree; None: all do, as far as they said something."""
        known = self._known.get(model, {})
        texts = {who: one.text for who, one in known.items() if one.text is not None}
        chats = {who: one.chat for who, one in known.items() if one.chat is not None}
        return _odd("text", texts) or _odd("chat", chats)

    def page(self, model: str) -> dict[str, dict[str, Any]]:
        """Who → digests. Plain values."""
        known = self._known.get(model, {})
        return {who: {"text": one.text, "chat": one.chat} for who, one in sorted(known.items())}


def _odd(what: str, digests: dict[str, str]) -> Difference | None:
    counts = Counter(digests.values())
    if len(counts) < 2:
        return None

    def rank(one: str) -> tuple[int, str]:
        return (-counts[one], min(who for who in digests if digests[who] == one))

    usual = min(counts, key=rank)
    odd = sorted(who for who, one in digests.items() if one != usual)
    others = sorted(who for who, one in digests.items() if one == usual)
    return Difference(what, tuple(odd), tuple(others))
