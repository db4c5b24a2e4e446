"""`roots audit canaries`: the exposure of secrets that `roots preprocess --canaries` planted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.audit.options import Data, Seed
from roots.cli.options.trained import AsJson, Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.inspection.audit.canaries import CanaryAudit


def canaries(
    checkpoint: Checkpoint,
    *,
    data: Data,
    samples: Annotated[
        int, typer.Option(min=100, help="Secrets to rank against; all, where there are no more.")
    ] = 1000,
    seed: Seed = 1234,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Print how exposed each planted secret is, in bits, by how often it was planted."""
    from dataclasses import asdict

    from roots.cli.progress import shown
    from roots.data.canaries import read_canaries
    from roots.device import current_device
    from roots.inspection.audit.canaries import audit_canaries
    from roots.inspection.audit.subject import Subject

    planted = read_canaries(data)
    subject = Subject.load(checkpoint, current_device(), tokenizer)
    subject.open(data)
    with shown("ranking secrets") as report:
        audit = audit_canaries(subject, planted, samples=samples, seed=seed, progress=report)
    if as_json:
        head = {"checkpoint": str(subject.model.checkpoint), "data": data, "seed": seed}
        typer.echo(json.dumps({**head, **asdict(audit)}, indent=2))
        return
    typer.echo(f"checkpoint  {subject.model.checkpoint}")
    typer.echo(f"canaries    {audit.text!r}, {audit.space:,} possible secrets")
    for line in _lines(audit):
        typer.echo(line)


def _lines(audit: CanaryAudit) -> list[str]:
    lines = [f"exposure    {audit.chance:.2f} bits by chance, {audit.most:.2f} at most", ""]
    lines.append("repeats  secrets  mean exposure  95% interval    written out")
    for each in audit.multiplicities:
        interval = f"{each.interval.low:.2f} to {each.interval.high:.2f}"
        lines.append(
            f"{each.repeats:>7}  {each.secrets:>7}  {each.mean_exposure:>13.2f}  {interval:<14}"
            f"  {each.written_out:>11}"
        )
    fits = [each.fit_distance for each in audit.canaries if each.fit_distance is not None]
    if fits:
        lines.append("")
        count = f"{len(fits)} of {len(audit.canaries)} ranks"
        lines.append(
            f"{count} are from a fitted tail; the fits are off by {max(fits):.3f} at most."
        )
    return lines
