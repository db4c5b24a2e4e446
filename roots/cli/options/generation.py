"""Options of the commands that write texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NamesOfTokens = Annotated[
    bool,
    typer.Option(
        "--special-tokens/--no-special-tokens",
        help="Whether names of special tokens in a prompt, as `<|im_start|>`, are these tokens "
        "(as in transformers) or plain text.",
    ),
]
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
TokenizerFolder = Annotated[
    str | None, typer.Option(help="Folder of the tokenizer; default: that of the training.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
