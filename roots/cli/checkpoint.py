"""`roots checkpoint`: list, describe, check and remove the checkpoints of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.options.trained import AsJson
from roots.errors import RootsError, problem

if TYPE_CHECKING:
    from roots.checkpoint.entries import Entry
    from roots.checkpoint.manifest import Manifest
    from roots.checkpoint.retention import Pruned

checkpoint_app = typer.Typer(
    help="List, describe, check and remove the checkpoints of a run.", no_args_is_help=True
)

RunOrCheckpoint = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT", help="Folder or URL of a run, or of one checkpoint."
    ),
]
_MINUTES = "%Y-%m-%d %H:%M"


@checkpoint_app.command("list")
def list_checkpoints(given: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """Print a line for each checkpoint: when, bytes, held-out loss, state and layout.

    `complete` is one whose files are all there in their length; `verify` reads them. A time behind
    `~` is that of the manifest's file: a ROOTS from before did not write when it saved.
    """
    from roots.checkpoint.entries import entries_of

    entries = entries_of(given)
    if as_json:
        typer.echo(json.dumps([entry.record() for entry in entries], indent=2))
        return
    head = ("checkpoint", "saved", "bytes", "held-out", "state", "layout")
    _print_table([head, *map(_row, entries)])
    for entry in entries:
        for line in entry.damage:
            typer.echo(line)


@checkpoint_app.command()
def show(
    given: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="Folder or URL of a run (then its latest), or of a checkpoint.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print what a checkpoint holds: its step, data, layout, model, files and what reads it."""
    from roots.checkpoint.entries import opened_entry
    from roots.checkpoint.folders import read_config
    from roots.checkpoint.manifest import read_manifest
    from roots.checkpoint.weights import WeightStore

    with opened_entry(given) as (folder, entry):
        found = read_manifest(folder)
        config = read_config(folder)
        shapes = {name: tensor.shape for name, tensor in WeightStore(folder).tensors.items()}
    document = {
        **entry.record(),
        "consumed_samples": found.consumed_samples,
        "consumed_tokens": found.consumed_samples * config.model.sequence_length,
        "data": None if found.data is None else asdict(found.data),
        "architecture": config.model.architecture,
        "tensors": len(shapes),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "files": _parts(found),
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for name, text in _words(entry, found, document).items():
        typer.echo(f"{name:12}  {text}")
    for line in entry.damage:
        typer.echo(line)


@checkpoint_app.command()
def verify(given: RunOrCheckpoint, as_json: AsJson = False) -> None:
    """Read every byte and compare it with the checksums; of a run, of all its checkpoints.

    Ends with code 2 and a line for each damaged file.
    """
    from roots.checkpoint.entries import checkpoints_of, is_there
    from roots.files import is_url

    if is_url(given):
        reports = _verified_at(given)
    else:
        found = [(path, _verified(path)) for path in checkpoints_of(given)]
        reports = [report for path, report in found if is_there(path)]
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    for report in () if as_json else reports:
        state = "damaged" if report["damage"] else "as it was saved"
        size = f"{report['bytes']:,} bytes in {report['files']} files"
        typer.echo(f"{report['path']}: {size}, {state}")
    if lines := [line for report in reports for line in report["damage"]]:
        raise RootsError(*lines)


@checkpoint_app.command()
def prune(
    run: Annotated[str, typer.Argument(help="Folder of a run.")],
    *,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="Newest ones to keep; one stays in any case.")
    ] = None,
    keep_every_steps: Annotated[
        int | None, typer.Option(min=1, help="Keep those whose step is a multiple of this.")
    ] = None,
    keep_best: Annotated[
        int | None, typer.Option(min=1, help="Keep those of the lowest held-out losses.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the checkpoints of a run but those that an option keeps; at least one has to be given.

    Refuses while a run owns the folder, and where no good checkpoint would be left: the newest one
    that stays is read to its last byte first.
    """
    from roots.checkpoint import retention
    from roots.checkpoint.entries import root_of

    if keep_last is keep_every_steps is keep_best is None:
        fix = "give --keep-last, --keep-every-steps or --keep-best"
        raise RootsError(problem("checkpoint", run, "nothing says what to keep", fix))
    keep = retention.Keep(keep_last or 1, keep_every_steps or 0, keep_best or 0)
    root = root_of(run)
    with nullcontext() if dry_run else _owned(root):
        pruned = retention.prune(root, keep, dry_run=dry_run)
    _tell(pruned, dry_run, as_json)
    if pruned.failed:
        fix = "change its rights, or remove it yourself"
        rule = "could not be removed, or not all of it"
        raise RootsError(*(problem("checkpoint", str(path), rule, fix) for path in pruned.failed))


def _owned(root: Path) -> AbstractContextManager[object]:
    """Own the run of the checkpoints in `root`, as a run that trains would."""
    from roots.checkpoint.folders import CHECKPOINTS_FOLDER
    from roots.lock import RUN_LOCK_NAME, Place, owned

    run = root.parent if root.name == CHECKPOINTS_FOLDER else root
    fix = "wait for that run or end it; --dry-run only looks"
    place = Place("run folder", "whoever changes it is recorded there", fix, value=str(run))
    return owned(run / RUN_LOCK_NAME, place)


def _tell(pruned: Pruned, dry_run: bool, as_json: bool) -> None:
    if as_json:
        names = ("kept", "removed", "failed")
        document = {name: [str(path) for path in getattr(pruned, name)] for name in names}
        typer.echo(json.dumps({**document, "dry_run": dry_run}, indent=2))
        return
    verb = "would remove" if dry_run else "removed"
    for path in pruned.removed:
        typer.echo(f"{verb} {path}")
    typer.echo(f"kept {', '.join(path.name for path in pruned.kept)}")


def _row(entry: Entry) -> tuple[str, ...]:
    found = entry.manifest
    loss = None if found is None else found.evaluation
    return (
        entry.name,
        _time(entry),
        "-" if entry.bytes is None else f"{entry.bytes:,}",
        "-" if loss is None else f"{loss:.4f}",
        entry.state,
        "-" if found is None else found.layout.describe(),
    )


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def _words(entry: Entry, found: Manifest, document: dict[str, Any]) -> dict[str, str]:
    """What `show` tells, by the subject of each line."""
    loss = "not measured after this step" if found.evaluation is None else f"{found.evaluation:.4f}"
    size = f"{document['parameters']:,} parameters in {document['tensors']} tensors"
    parts = [f"{name} {part['bytes']:,}" for name, part in document["files"].items()]
    use = "checkpoint.resume and checkpoint.weights read it"
    if not found.has_training_state:
        use = "weights alone: checkpoint.weights reads it, and no run goes on from it"
    return {
        "checkpoint": entry.where,
        "saved": _time(entry),
        "step": f"{found.step:,}, after {found.consumed_samples:,} samples, "
        f"{document['consumed_tokens']:,} tokens",
        "data": _data(found),
        "held-out": loss,
        "layout": found.layout.describe(),
        "model": f"{document['architecture']}, {size}",
        "bytes": f"{found.total_bytes:,} in {len(found.files)} files: {', '.join(parts)}",
        "state": entry.state,
        "use": use,
    }


def _data(found: Manifest) -> str:
    """The phase of the data, and how much there is of them."""
    data = found.data
    if data is None or not data.sources:
        return "phase 0, of which nothing is recorded"
    since = f", from sample {data.first_sample:,} on" if data.first_sample else ""
    tokens = sum(source.tokens for source in data.sources)
    sets = f"{len(data.sources)} dataset{'s' if len(data.sources) > 1 else ''}"
    return f"phase {data.phase}{since}: {tokens:,} tokens in {sets}"


def _time(entry: Entry) -> str:
    """When it was saved; with `~` the time of a file, where the manifest does not tell."""
    if entry.saved is not None:
        return entry.saved.strftime(_MINUTES)
    return "-" if entry.file_time is None else entry.file_time.strftime(f"~{_MINUTES}")


def _parts(found: Manifest) -> dict[str, dict[str, int]]:
    """Files and bytes of each folder inside a checkpoint, and of those beside them."""
    parts: dict[str, dict[str, int]] = {}
    for name, record in sorted(found.files.items()):
        folder, slash, _ = name.partition("/")
        part = parts.setdefault(folder if slash else "other files", {"files": 0, "bytes": 0})
        part["files"] += 1
        part["bytes"] += record.bytes
    return parts


def _verified(folder: Path) -> dict[str, Any]:
    """What reading all of a checkpoint has found."""
    from roots.checkpoint.manifest import DamagedError, all_damage, read_manifest
    from roots.cli.progress import shown

    report: dict[str, Any] = {"path": str(folder), "files": 0, "bytes": 0}
    try:
        found = read_manifest(folder)
    except DamagedError as error:
        return {**report, "damage": list(error.lines)}
    with shown(f"reading {folder.name}") as progress:
        damage = all_damage(folder, found, sorted(found.files), progress)
    return {**report, "files": len(found.files), "bytes": found.total_bytes, "damage": damage}


def _verified_at(url: str) -> list[dict[str, Any]]:
    """The same of every checkpoint at a URL."""
    from roots.checkpoint.locating import checkpoints_at
    from roots.checkpoint.manifest import DamagedError
    from roots.checkpoint.stored import unreachable
    from roots.cli.progress import shown

    stored, names = checkpoints_at(url, lost=True)
    reports: list[dict[str, Any]] = []
    for name in names:
        where = stored.where(name)
        report = {"path": where, "files": 0, "bytes": 0}
        try:
            found = stored.manifest(name)
            with shown(f"reading {where}") as progress:
                damage = stored.all_damage(name, found, progress)
            report |= {"files": len(found.files), "bytes": found.total_bytes}
        except DamagedError as error:
            damage = list(error.lines)
        except OSError as error:
            raise unreachable("checkpoint", where, error) from None
        reports.append({**report, "damage": damage})
    return reports
