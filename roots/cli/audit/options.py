"""Options that the commands of `roots audit` share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Checkpoint = Annotated[
    str, typer.Argument(help="Folder or URL of a checkpoint, or of a run (then its latest).")
]
Data = Annotated[str, typer.Option(metavar="PREFIX", help="Dataset that the model was trained on.")]
HeldOut = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates this on Python 3.10 too
    typer.Option(metavar="PREFIX", help="Dataset of like texts that it was not trained on."),
]
TokenizerFolder = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates this on Python 3.10 too
    typer.Option("--tokenizer", help="Folder of the tokenizer; default: that of the training."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of samples and of resampled intervals.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
