"""Known prefixes as the pool uses them: claims in, what came of them counted and told.

Joins the pure `conversations` with a clock, metrics and the log. Knows no endpoint and no call.
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from aibrix_extproc.errors import printable
from aibrix_extproc.extproc.prompts import Prompt
from aibrix_extproc.logs import StateLog
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from aibrix_extproc.tokenizer.buffers import TokenBuffer
from aibrix_extproc.tokenizer.conversations import Claim, Conversations
from aibrix_extproc.tokenizer.outline import Outline, outline
from aibrix_extproc.tokenizer.trust import DISTRUST_S
from aibrix_extproc.tokenizer.types import Prefix

_MAX_FRAMES: Final = 5000
"""Of one model: as many different tools or template arguments."""


@dataclass(frozen=True, slots=True)
class Glimpse:
    """A prompt's outline, and what was claimed of its tokens when it came."""

    sketch: Outline
    claim: Claim | None


def conversation_bytes(settings: Settings) -> int:
    """The part of `tokenizer_cache_bytes` that the memory of conversations has."""
    return settings.tokenizer_cache_bytes // 2 if settings.conversation_cache else 0


class KnownPrefixes:
    """What is known of prompts before they are tokenized. Lives on the pool's event loop."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        limit_bytes = conversation_bytes(settings)
        self._is_on = limit_bytes > 0
        self._share = settings.prefix_decide_share
        self._conversations = Conversations(limit_bytes)
        self._metrics = metrics
        self._enough, self._short, self._none = (
            metrics.token_prefixes.labels(result) for result in ("enough", "short", "none")
        )
        self._last: tuple[bytes, Glimpse | None] = (b"", None)
        self._wrong_at: dict[str, float] = {}
        self._frames: dict[str, set[bytes]] = {}
        """Model → frames learned of it; forgotten with the model, or where there are too many."""
        self._states = StateLog(logging.getLogger("aibrix_extproc.tokenizer"))

    def glimpse(self, prompt: Prompt) -> Glimpse | None:
        """What is known of a prompt. The last answer is kept: one decision asks twice."""
        if not self._is_on:
            return None
        key, last = self._last
        if key != prompt.cache_key:
            sketch = outline(prompt)
            claim = self._conversations.claim(sketch, time.monotonic()) if sketch else None
            last = Glimpse(sketch, claim) if sketch is not None else None
            self._last = (prompt.cache_key, last)
        return last

    def prefix(self, prompt: Prompt, *, counts: bool) -> Prefix | None:
        """The known prefix, where it is long enough to decide by."""
        if not self._is_on:
            return None
        glimpse = self.glimpse(prompt)
        claim = glimpse.claim if glimpse is not None else None
        is_enough = claim is not None and claim.share >= self._share
        if counts:
            (self._enough if is_enough else self._short if claim else self._none).inc()
        if claim is None or not is_enough:
            return None
        return Prefix(claim.ids, claim.estimated_tokens, claim.answer_tokens)

    def learn(self, prompt: Prompt, glimpse: Glimpse | None, ids: TokenBuffer) -> None:
        """The real tokens of a prompt: they are learned from, and a claim is compared."""
        if glimpse is None:
            return
        now = time.monotonic()
        self._last = (b"", None)
        self._note_frame(prompt.model, glimpse.sketch.frame)
        is_right = self._conversations.learn(glimpse.sketch, ids, now, glimpse.claim)
        self._metrics.conversation_cache_bytes.set(self._conversations.size_bytes)
        name = f"known prefixes of {printable(prompt.model)}"
        if not is_right:
            self._metrics.token_prefix_wrong.inc()
            self._wrong_at[prompt.model] = now
            why = f"the tokens were others; prompts are tokenized first for {DISTRUST_S:.0f} s"
            self._states.changed(name, "wrong", why)
            return
        wrong_at = self._wrong_at.get(prompt.model)
        if wrong_at is not None and glimpse.claim is not None and now - wrong_at >= DISTRUST_S:
            del self._wrong_at[prompt.model]
            self._states.changed(name, "ok")

    def _note_frame(self, model: str, frame: bytes) -> None:
        frames = self._frames.setdefault(model, set())
        frames.add(frame)
        if len(frames) > _MAX_FRAMES:  # tools that never come again: their prompts go with them
            self._conversations.forget(frames - {frame})
            self._frames[model] = {frame}

    def flush(self, models: Collection[str] | None = None) -> None:
        """Forget everything, or all of these models."""
        self._last = (b"", None)
        if models is None:
            self._frames.clear()
            self._conversations.clear()
        else:
            for model in models:
                self._conversations.forget(self._frames.pop(model, set()))
        self._metrics.conversation_cache_bytes.set(self._conversations.size_bytes)
