"""What a decision rests on: a prefix that some pod holds, or load alone, and then why.

Pure. The words are a closed list together with the reasons for which tokens were not known, and
each pick has exactly one: their sum is the number of picks.
"""

from collections.abc import Callable
from enum import StrEnum

from aibrix_extproc.decide.plan import Plan
from aibrix_extproc.decide.view import KnownTokens, View
from aibrix_extproc.routing.types import Candidate, Decision


class Basis(StrEnum):
    """Labels of a metric; beside them stand the tokenizer's reasons and `tokenizer_off`."""

    PREFIX = "prefix"
    """Some candidate holds a part of the prompt, whether it was chosen or not."""
    STRATEGY = "strategy"
    """The strategy does not look at prompts."""
    NO_PROMPT = "no_prompt"
    """The body has no prompt that could be tokenized, or its path is none of the two."""
    SHORT = "short"
    """The prompt fills no block of any candidate, so nobody can hold any of it."""
    NOT_IN_STEP = "not_in_step"
    """Nobody is known to hold any of it, and of a candidate that sends events nothing may be
    believed now."""
    NOTHING_HELD = "nothing_held"
    """Nobody holds any of it."""


def basis(
    plan: Plan,
    tokens: KnownTokens,
    view: View,
    decision: Decision,
    is_out_of_step: Callable[[Candidate], bool],
) -> str:
    """The word for one decision. `is_out_of_step`: sends events, and is not believed now."""
    if any(scored.reusable_tokens for scored in decision.ranking):
        return Basis.PREFIX
    if tokens.fallback is not None:
        return tokens.fallback
    if not plan.strategy.needs_tokens:
        return Basis.STRATEGY
    if tokens.ids is None:
        return Basis.NO_PROMPT
    # The last token of a prompt is always computed, so a block needs one more.
    if len(tokens.ids) <= min(view.block_sizes.values()):
        return Basis.SHORT
    if any(is_out_of_step(candidate) for candidate in plan.candidates):
        return Basis.NOT_IN_STEP
    return Basis.NOTHING_HELD
