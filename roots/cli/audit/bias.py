"""`roots audit bias`: what a model prefers among sentences that differ in whom they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from roots.cli.audit.options import Seed
from roots.cli.options.trained import AsJson, Checkpoint, TokenizerFolder

if TYPE_CHECKING:
    from roots.evaluation.bias.probe import Estimate, Findings, Probe
    from roots.inspection.audit.subject import Subject

Against = Annotated[
    Optional[str],  # noqa: UP045  # typer evaluates these on Python 3.10 too
    typer.Option(metavar="CHECKPOINT", help="Another one, to tell the difference from."),
]
CrowsPairsFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="CSV of CrowS-Pairs."),
]
StereoSetFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="JSON of StereoSet."),
]
WinoBiasFiles = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        metavar="FILE", help="pro_stereotyped file of WinoBias, its twin beside it; repeatable."
    ),
]


def bias(
    checkpoint: Checkpoint,
    *,
    against: Against = None,
    crows_pairs: CrowsPairsFile = None,
    stereoset: StereoSetFile = None,
    winobias: WinoBiasFiles = None,
    seed: Seed = 1234,
    tokenizer: TokenizerFolder = None,
    as_json: AsJson = False,
) -> None:
    """Print which sentences the model finds likelier, with 95% intervals."""
    from roots.device import current_device
    from roots.inspection.audit.subject import Subject

    probes = _probes(crows_pairs, stereoset, winobias)
    subjects, found = [], []
    for each in (checkpoint, against):
        if each is not None:
            subject = Subject.load(each, current_device(), tokenizer)
            subjects.append(str(subject.model.checkpoint))
            found.append(_scored(subject, probes))
    tables = [Table.of(probe, some, seed) for probe, *some in zip(probes, *found)]
    if as_json:
        head = dict(zip(("checkpoint", "against"), subjects))
        probed = {table.probe: table.as_json() for table in tables}
        typer.echo(json.dumps({**head, "seed": seed, "probes": probed}, indent=2))
        return
    for title, each in zip(("checkpoint", "against"), subjects):
        typer.echo(f"{title:<10}  {each}")
    for table in tables:
        typer.echo(f"\n{table.probe}")
        for line in table.lines():
            typer.echo(f"  {line}")


@dataclass(frozen=True)
class Table:
    """What one probe found of one model, and where there are two, of the other."""

    probe: str
    estimates: Sequence[Estimate]
    against: Sequence[Estimate]
    difference: Sequence[Estimate]
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, probe: Probe, found: Sequence[Findings], seed: int) -> Table:
        """All statistics of the findings of one or two models."""
        from roots.evaluation.bias.probe import differences, estimates

        ours, theirs = found[0], found[1:]
        against = [each for some in theirs for each in estimates(probe, some, seed)]
        changes = [each for some in theirs for each in differences(probe, ours, some, seed)]
        return cls(probe.name, estimates(probe, ours, seed), against, changes, ours.left_out)

    def as_json(self) -> dict[str, Any]:
        """As numbers under their names."""
        tables = {"estimates": self.estimates}
        if self.against:
            tables |= {"against": self.against, "difference": self.difference}
        listed = {name: [asdict(each) for each in table] for name, table in tables.items()}
        return {**listed, "left_out": dict(self.left_out)}

    def lines(self) -> Iterator[str]:
        """A line a statistic and group, and one for each difference."""
        yield f"{'group':<22}  {'what':<35}  {'value':>6}  95% interval    neutral  examples"
        for number, each in enumerate(self.estimates):
            yield _line(each.group, each.statistic, each)
            if self.against:
                yield _line(
                    "", f"  against {self.against[number].value:.1f}", self.difference[number]
                )
        for what, count in self.left_out.items():
            yield f"Left out: {count} {what}."


def _line(group: str, what: str, each: Estimate) -> str:
    is_change = not group
    sign = "+" if is_change else ""
    low, high = (f"{bound:{sign}.1f}" for bound in each.interval)
    interval, value = f"{low} to {high}", f"{each.value:{sign}.1f}"
    neutral = "" if each.neutral is None else f"{each.neutral:g}"
    rest = "" if is_change else f"  {neutral:>7}  {each.examples:>8}"
    return f"{group:<22}  {what:<35}  {value:>6}  {interval:<14}{rest}"


def _probes(
    crows_pairs: Path | None, stereoset: Path | None, winobias: Sequence[Path] | None
) -> list[Probe]:
    """The probes whose files are given. Raises RootsError where there are none."""
    from roots.errors import RootsError, problem
    from roots.evaluation.bias.crows_pairs import CrowsPairs
    from roots.evaluation.bias.stereoset import StereoSet
    from roots.evaluation.bias.winobias import WinoBias

    probes: list[Probe] = []
    if crows_pairs is not None:
        probes.append(CrowsPairs.read(crows_pairs))
    if stereoset is not None:
        probes.append(StereoSet.read(stereoset))
    if winobias:
        probes.append(WinoBias.read(winobias))
    if not probes:
        options = "--crows-pairs, --stereoset, --winobias"
        fix = "give the file of one of them, which their authors publish"
        raise RootsError(problem(options, None, "none of them is given", fix))
    return probes


def _scored(subject: Subject, probes: Sequence[Probe]) -> list[Findings]:
    from roots.cli.progress import shown
    from roots.evaluation.bias.score import score_probe

    found = []
    for probe in probes:
        with shown(f"scoring {probe.name}") as report:
            network = subject.model.network
            found.append(score_probe(network, subject.tokenizer, probe, report))
    return found
