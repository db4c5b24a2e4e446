"""`roots verify`: proves on this machine that a config's layout computes what one process does."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.notes import tell_notes
from roots.errors import ExitCode

if TYPE_CHECKING:
    from roots.verify.compare import Comparison, Difference
    from roots.verify.proof import Verdict


def verify(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=0, help="Processes of the layout; 0: two replicas, if few enough.")
    ] = 0,
    logs: Annotated[
        Path | None, typer.Option(help="New folder for the ranks' logs, kept; none: removed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Train a small copy of CONFIG in its layout and on one process, and compare every tensor.

    Ten steps in fp32 with processes of this machine, on its GPUs where there are enough. Exit code
    0: all within a relative 1e-5; 5: something differs, and the tensor that did first is named.
    """
    from roots.cli.progress import shown
    from roots.config import load_config
    from roots.log import configure
    from roots.verify.proof import default_ranks, most_ranks
    from roots.verify.proof import verify as prove

    loaded = load_config(config, overrides or ())
    tell_notes(loaded)
    configure()
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        told = stack.enter_context(shown("verifying"))
        verdict = prove(loaded, ranks or default_ranks(loaded, most_ranks()), folder, told)
    if as_json:
        typer.echo(json.dumps(report(verdict), indent=2))
    else:
        _print_table(verdict)
    if not verdict.comparison.equal:
        raise typer.Exit(int(ExitCode.DIFFERENT))


def report(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain values; differences are null where something is missing."""
    comparison = verdict.comparison
    first = comparison.first
    return {
        "equal": comparison.equal,
        "tolerance": comparison.tolerance,
        "first_difference": None if first is None else first.describe(),
        "ranks": verdict.ranks,
        "device": verdict.device,
        "reduced": list(verdict.reduced),
        "seconds": round(verdict.seconds, 1),
        "parallel": verdict.config.parallel.model_dump(mode="json"),
        "model": verdict.config.model.model_dump(mode="json"),
        "losses": verdict.reference.losses,
        "differences": [
            {
                "kind": each.kind,
                "tensor": each.name,
                "step": each.step,
                "ranks": list(each.ranks),
                "relative": None if each.relative == float("inf") else each.relative,
            }
            for each in comparison.largest
        ],
    }


def _print_table(verdict: Verdict) -> None:
    model, parallel = verdict.config.model, verdict.config.parallel
    losses = verdict.reference.losses
    from roots.config.batch import plan_batch

    data = plan_batch(verdict.config, verdict.ranks).data_parallel
    sequence = " with sequence" if parallel.sequence else ""
    schedule = f" ({parallel.pipeline_schedule})" if parallel.pipeline > 1 else ""
    expert = f", expert {parallel.expert}" if parallel.expert > 1 else ""
    typer.echo(
        f"{verdict.ranks} ranks ({verdict.device}): tensor {parallel.tensor}{sequence} x pipeline "
        f"{parallel.pipeline}{schedule} x context {parallel.context} x data {data}{expert}, "
        f"ZeRO {parallel.zero_stage}, recompute {parallel.recompute}; "
        "against one process, in fp32"
    )
    for line in verdict.reduced:
        typer.echo(f"not as in the config: {line}")
    typer.echo(
        f"model: {model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads, "
        f"{model.sequence_length} tokens; loss {losses[0]:.4f} to {losses[-1]:.4f} "
        f"in {len(losses)} steps"
    )
    comparison = verdict.comparison
    tensors: dict[str, dict[str, Difference]] = {}
    typer.echo("relative differences, the largest of all steps:")
    for each in comparison.largest:
        if each.name:
            tensors.setdefault(each.name, {})[each.kind] = each
        else:
            typer.echo(f"{each.relative:10.1e}  {each.kind}{_mark(each, comparison)}")
    typer.echo("  gradient    weight  tensor")
    for name, found in tensors.items():
        cells = [
            f"{found[kind].relative:10.1e}" if kind in found else " " * 10
            for kind in ("gradient", "weight")
        ]
        worst = max(found.values(), key=lambda each: each.relative)
        typer.echo(f"{''.join(cells)}  {name}{_mark(worst, comparison)}")
    if comparison.first is None:
        tolerance, seconds = comparison.tolerance, verdict.seconds
        typer.echo(f"equal: nothing differs by more than {tolerance:g} ({seconds:.0f} s)")
    else:
        typer.echo(f"different: first {comparison.first.describe()}")


def _mark(difference: Difference, comparison: Comparison) -> str:
    """What stands behind a line that is beyond the tolerance."""
    if difference.relative <= comparison.tolerance:
        return ""
    return "  (not held whole)" if difference.kind == "coverage" else "  DIFFERS"
