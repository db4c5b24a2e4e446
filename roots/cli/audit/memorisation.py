"""`roots audit memorisation`: which share of a corpus a model continues verbatim."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from roots.cli.audit.options import Data, HeldOut, Seed
from roots.cli.options.trained import AsJson, Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.inspection.audit.memorisation import Lengths, Memorisation, Share


def memorisation(
    checkpoint: Checkpoint,
    *,
    data: Data,
    held_out: HeldOut = None,
    prefix_tokens: Annotated[
        str, typer.Option(metavar="P,P,...", help="Tokens that the model is given, each of these.")
    ] = "16,32,64",
    continuation_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that it must then write as they are.")
    ] = 32,
    samples: Annotated[
        int, typer.Option(min=1, help="Runs of tokens of each magnitude of occurrences.")
    ] = 300,
    seed: Seed = 1234,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Print which share of a dataset the model continues verbatim, by how often it occurs there."""
    from dataclasses import asdict

    from roots.cli.progress import shown
    from roots.device import current_device
    from roots.inspection.audit.memorisation import audit_memorisation, check_lengths, choose_runs
    from roots.inspection.audit.subject import Subject

    lengths = _lengths(prefix_tokens, continuation_tokens)
    subject = Subject.load(checkpoint, current_device(), tokenizer)
    check_lengths(lengths, subject.sequence_length)
    indexed = subject.open(data)
    other = None if held_out is None else subject.open(held_out)
    with shown("counting occurrences") as report:
        chosen = choose_runs(indexed, other, lengths, samples=samples, seed=seed, progress=report)
    with shown("continuing texts") as report:
        audit = audit_memorisation(subject, chosen, report)
    if as_json:
        head = {"checkpoint": str(subject.model.checkpoint), "data": data, "held_out": held_out}
        typer.echo(json.dumps({**head, "seed": seed, **asdict(audit)}, indent=2))
        return
    typer.echo(f"checkpoint    {subject.model.checkpoint}")
    typer.echo(f"verbatim      {audit.continuation_tokens} tokens, greedily")
    for line in _table(audit):
        typer.echo(line)


def _lengths(prefixes: str, continuation: int) -> Lengths:
    from roots.errors import RootsError, problem
    from roots.inspection.audit.memorisation import Lengths

    try:
        numbers = tuple(int(number) for number in prefixes.split(","))
    except ValueError:
        rule, fix = "must be numbers with commas between them", "write them as 16,32,64"
        raise RootsError(problem("--prefix-tokens", prefixes, rule, fix)) from None
    return Lengths(numbers, continuation)


def _table(audit: Memorisation) -> list[str]:
    lines = ["", "occurs        runs  prefix  verbatim  95% interval"]
    lines += [_line(_occurs(share), share) for share in audit.held_in]
    lines += [_line("held out", share) for share in audit.held_out]
    if audit.left_out:
        lines += ["", f"Left out of the held-out runs: {audit.left_out} that occur in the data."]
    return lines


def _occurs(share: Share) -> str:
    return "once" if share.most == 1 else f"{share.fewest} to {share.most}"


def _line(what: str, share: Share) -> str:
    low, high = (f"{100 * bound:.1f}%" for bound in share.interval)
    percent = f"{100 * share.verbatim / share.runs:.1f}%"
    return f"{what:<12}  {share.runs:>4}  {share.prefix_tokens:>6}  {percent:>8}  {low} to {high}"
