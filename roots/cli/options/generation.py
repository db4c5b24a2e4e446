"""Options of the commands that write texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from roots.generation.options import GenerationOptions

Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "--source",
        help="Text to continue, or source of an encoder-decoder; may be given repeatedly.",
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="Prompts instead: a line each, or .jsonl of `prompt`; -: of standard input."
    ),
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--to",
        help=".jsonl of the texts, one line each; what is in it already is not written anew.",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens added at most.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]
Temperature = Annotated[float, typer.Option(help="Divides the logits.")]
TopK = Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Only the likeliest tokens that reach this probability.")]
MinP = Annotated[float, typer.Option(help="Only tokens of this share of the largest probability.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Divides logits of tokens that are in the text (CTRL); 1: none.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Taken from a logit for each time its token was written.")
]
PresencePenalty = Annotated[float, typer.Option(help="Taken from the logits of written tokens.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Text that ends what is written; may be given repeatedly.")
]
Seed = Annotated[int, typer.Option(help="Seed of the choice of tokens.")]
Beams = Annotated[
    int, typer.Option(min=0, help="Texts that beam search keeps; 0: none, an encoder-decoder 1.")
]
LengthPenalty = Annotated[
    float, typer.Option(help="Exponent of the length that scores of beams are divided by.")
]
LogProbabilities = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="K",
        help="With --json or --to: log-probability of every token and of the K likeliest.",
    ),
]
Stream = Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")]
Tensor = Annotated[
    int | None,
    typer.Option(min=1, help="Under several processes: tensor ranks; none: as in training."),
]
Stages = Annotated[
    int | None,
    typer.Option("--pipeline", min=1, help="Likewise: pipeline stages."),
]
Experts = Annotated[
    int | None, typer.Option("--expert", min=1, help="Likewise: ranks that share the experts.")
]

# Parameters that concern the choice of tokens at random.
OF_CHANCE = ("temperature", "top_k", "top_p", "min_p", "seed")


def generation_options(given: Mapping[str, Any]) -> GenerationOptions:
    """How texts are written, from parameters by their names. Raises RootsError for bad ones."""
    from roots.generation.options import GenerationOptions
    from roots.generation.sampling import SamplingOptions

    sampling = {each.name: given[each.name] for each in fields(SamplingOptions)}
    return GenerationOptions(
        max_new_tokens=given["max_new_tokens"],
        sampling=SamplingOptions(**sampling),
        seed=given["seed"],
        stop=tuple(given["stop"] or ()),
        log_probabilities=given.get("log_probabilities"),
    )
