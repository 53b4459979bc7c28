"""Whether a chat template only ever appends: believed after proofs, and not after a failure.

A plain state machine over token ids; it knows no message. One `Trust` is for one frame (model,
tools, template arguments) and one *shape* of going on: role of the last message, role of the
first one added, whether a user's message was added.

A proof is a pair of tokenized prompts, the second being the first with messages added. What the
pair shows is how many tokens at the end of the first were not kept. That is usual: a generation
prompt stands there (`<think>`, say), which an answer in the history does not begin with. It is
harmless only where it is the same for every prompt, and that is what is asked for: **the tokens
that were not kept are the same tokens in every proof**. And a claim is made only from a prompt
that ends as all proofs did. So a template that moves the tools into the last user message proves
nothing (the message stands in what was not kept, and the messages differ), nor does one that
counts messages in its header (next to nothing was kept); and a prompt whose last message switches
the generation prompt is left alone.
"""

from typing import Final

from aibrix_extproc.tokenizer.buffers import TokenBuffer, common_ending, last_tokens

PROOFS: Final = 3
"""Pairs, each with another last message, before an extension is believed."""

ENDING_TOKENS: Final = 64
"""The longest ending that may change. Longer generation prompts are not known."""

DISTRUST_S: Final = 300.0
"""How long nothing is believed after a failure."""


class Trust:
    """Of one frame and shape. The clock is the `now` that is passed in."""

    __slots__ = ("_changed", "_ending", "_lost_until", "_seen")

    def __init__(self) -> None:
        self._lost_until = float("-inf")
        self._forget()

    def _forget(self) -> None:
        self._seen: set[int] = set()
        self._ending: TokenBuffer | None = None
        self._changed = 0

    def observe(self, ending: TokenBuffer, changed: int, last_message: int, now: float) -> bool:
        """A pair: the last ENDING_TOKENS of its first prompt, and how many were not kept.

        `last_message` tells proofs apart. False: the pair is a failure.
        """
        if now < self._lost_until:
            return True
        common = ending if self._ending is None else common_ending(self._ending, ending)
        changed = max(self._changed, changed)
        if changed > len(common):
            self._forget()
            self._lost_until = now + DISTRUST_S
            return False
        self._ending, self._changed = common, changed
        if len(self._seen) < PROOFS:
            self._seen.add(last_message)
        return True

    def observe_text(self, is_kept: bool, text: int, now: float) -> bool:
        """A pair of text prompts: whether all but the unsettled tokens of the first was kept."""
        if now < self._lost_until:
            return True
        if not is_kept:
            self._forget()
            self._lost_until = now + DISTRUST_S
        elif len(self._seen) < PROOFS:
            self._seen.add(text)
        return is_kept

    def is_believed(self, now: float) -> bool:
        """Whether there are proofs enough, and no failure since."""
        return now >= self._lost_until and len(self._seen) >= PROOFS

    def not_kept(self, ending: TokenBuffer, now: float) -> int | None:
        """How many tokens at the end of a prompt that ends so are not kept; None: not known."""
        if not self.is_believed(now) or self._ending is None:
            return None
        if last_tokens(ending, len(self._ending)) != self._ending:
            return None
        return self._changed
