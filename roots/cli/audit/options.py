"""Options that the commands of `roots audit` share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Data = Annotated[str, typer.Option(metavar="PREFIX", help="Dataset that the model was trained on.")]
HeldOut = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates this on Python 3.10 too
    typer.Option(metavar="PREFIX", help="Dataset of like texts that it was not trained on."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of samples and of resampled intervals.")]
