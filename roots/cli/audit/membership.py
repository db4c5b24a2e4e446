"""`roots audit membership`: whether losses tell documents of the training from others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.audit.options import Data, HeldOut, Seed
from roots.cli.options.trained import AsJson, Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.inspection.audit.membership import Membership


def membership(
    checkpoint: Checkpoint,
    *,
    data: Data,
    held_out: HeldOut = None,
    samples: Annotated[int, typer.Option(min=2, help="Documents of each dataset, at most.")] = 500,
    seed: Seed = 1234,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Print how well the loss of a document tells whether the model was trained on it."""
    from dataclasses import asdict

    from roots.cli.progress import shown
    from roots.device import current_device
    from roots.errors import RootsError, problem
    from roots.inspection.audit.membership import audit_membership
    from roots.inspection.audit.subject import Subject

    if held_out is None:
        rule = "is not given, and there is nothing to tell documents of the data from"
        fix = "give a dataset of like texts that the model was not trained on"
        raise RootsError(problem("--held-out", None, rule, fix))
    subject = Subject.load(checkpoint, current_device(), tokenizer)
    indexed, other = subject.open(data), subject.open(held_out)
    with shown("reading documents") as report:
        audit = audit_membership(
            subject, indexed, other, samples=samples, seed=seed, progress=report
        )
    if as_json:
        head = {"checkpoint": str(subject.model.checkpoint), "data": data, "held_out": held_out}
        typer.echo(json.dumps({**head, "seed": seed, **asdict(audit)}, indent=2))
        return
    typer.echo(f"checkpoint  {subject.model.checkpoint}")
    for line in _table(audit):
        typer.echo(line)


def _table(audit: Membership) -> list[str]:
    lines = [
        f"documents   {audit.members} of the data, {audit.member_tokens:.1f} tokens each; "
        f"{audit.others} held out, {audit.other_tokens:.1f}",
        "",
        "score     AUC    95% interval    found at 1% wrongly accused",
    ]
    for each in audit.attacks:
        interval = f"{each.interval.low:.3f} to {each.interval.high:.3f}"
        lines.append(f"{each.score:<8}  {each.auc:.3f}  {interval}  {100 * each.found:.1f}%")
    return lines
