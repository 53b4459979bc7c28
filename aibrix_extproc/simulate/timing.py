"""How long a step of an engine lasts: the only place where the simulator knows about hardware.

Pure. Two models: `Polynomial`, the default, and `Linear`, which is the fake engine's own.
"""

from dataclasses import dataclass
from typing import Protocol

from aibrix_extproc.fakes.config import TimeModel
from aibrix_extproc.fakes.scheduler import Step


class StepTime(Protocol):
    """Seconds of one step. `capacity_tokens`: what the engine's cache holds."""

    def step_s(self, step: Step, capacity_tokens: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A prefill by its tokens, a decode by how full the cache is, each of degree two.

    With n prompt tokens in a step, and a share f (0 to 1) of the cache's tokens in the contexts of
    the requests that decode in it:

        prefill  prefill_ms + n * prefill_us_per_token + n² * prefill_ns_per_square
                 + pairs * prefill_ns_per_pair                                        (n > 0)
        decode   decode_ms + f * decode_fill_ms - f² * decode_fill_square_ms          (any decodes)

    `pairs`: each of the n tokens with each one before it in its own prompt, reused ones included:
    what attention costs over a long context. The defaults, without it, are those of Dynamo 1.6's
    simulator (AISimulate 0.13, "polynomial"): found by its authors, and seen again in the times
    that it reports. An engine that is half as fast in prefill has `prefill_scale` 2.
    """

    prefill_ms: float = 16.50142
    prefill_us_per_token: float = 15.18344
    prefill_ns_per_square: float = 0.4209989
    decode_ms: float = 5.74
    decode_fill_ms: float = 54.01
    decode_fill_square_ms: float = 25.74
    prefill_scale: float = 1.0
    decode_scale: float = 1.0
    prefill_ns_per_pair: float = 0.0

    def step_s(self, step: Step, capacity_tokens: int) -> float:
        """Seconds of one step; prefill and decode of the same step add up."""
        seconds = 0.0
        if tokens := step.prefill_tokens:
            us = tokens * self.prefill_us_per_token
            ns = tokens * tokens * self.prefill_ns_per_square
            if self.prefill_ns_per_pair:
                ns += step.pairs * self.prefill_ns_per_pair
            seconds += (self.prefill_ms / 1e3 + us / 1e6 + ns / 1e9) * self.prefill_scale
        if step.decoding:
            fill = min(1.0, step.context_tokens / capacity_tokens)
            ms = self.decode_ms + fill * (self.decode_fill_ms - fill * self.decode_fill_square_ms)
            seconds += ms / 1e3 * self.decode_scale
        return seconds


@dataclass(frozen=True, slots=True)
class Linear:
    """The fake engine's model (`fakes.config.TimeModel`): for a comparison with it."""

    model: TimeModel

    def step_s(self, step: Step, capacity_tokens: int) -> float:
        """Seconds of one step, which do not depend on the cache."""
        return self.model.step_s(step.prefill_tokens, step.pairs, step.decoding)
