"""Options that several commands share, most of them on a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

Checkpoint = Annotated[
    str, typer.Argument(help="Folder or URL of a checkpoint, or of a run (then its latest).")
]
TokenizerFolder = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Folder of the tokenizer; default: that of the training."),
]
NamesOfTokens = Annotated[
    bool,
    typer.Option(
        "--special-tokens/--no-special-tokens",
        help="Whether names of special tokens in a prompt, as `<|im_start|>`, are these tokens "
        "(as in transformers) or plain text.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
