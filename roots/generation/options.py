"""How prompts are continued, whatever does it."""

from __future__ import annotations

from dataclasses import dataclass, field

from roots.errors import RootsError, problem
from roots.generation.sampling import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How prompts are continued.

    max_new_tokens:    tokens added at most; 0: none, where the prompt's own are asked for
    sampling:          how each is chosen
    seed:              of the choice; equal seed, prompt and options give an equal text
    stop:              texts that end a continuation, and are no part of it
    log_probabilities: tell that of every new token and of so many of the likeliest; None: of none
    of_prompt:         tell those of the prompt's tokens too
    Raises RootsError with every field that is out of range.
    """

    max_new_tokens: int = 64
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int = 1234
    stop: tuple[str, ...] = ()
    log_probabilities: int | None = None
    of_prompt: bool = False

    def __post_init__(self) -> None:
        lines = []
        if self.max_new_tokens < (0 if self.of_prompt else 1):
            rule = "must not be negative" if self.of_prompt else "must be 1 or more"
            lines.append(problem("max_new_tokens", self.max_new_tokens, rule, "raise it"))
        if not 0 <= self.seed < 2**64:
            lines.append(problem("seed", self.seed, "must be in [0, 2^64)", "choose one there"))
        if "" in self.stop:
            rule = "is empty, and stands everywhere"
            lines.append(problem("stop", "", rule, "give the text that ends a continuation"))
        if self.log_probabilities is not None and self.log_probabilities < 0:
            rule = "must not be negative"
            fix = "use 0 for the chosen tokens alone"
            lines.append(problem("log_probabilities", self.log_probabilities, rule, fix))
        if lines:
            raise RootsError(*lines)
