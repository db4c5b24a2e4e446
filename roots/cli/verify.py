"""`roots verify`: proves on this machine that a config's layout computes what one process does."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roots.cli.notes import tell_notes
from roots.errors import ExitCode

if TYPE_CHECKING:
    from roots.verify.compare import Comparison, Difference
    from roots.verify.proof import Verdict


class Computes(StrEnum):
    """What a proof computes in; `run`: in what the run does."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    run = "run"


def verify(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[section.key=value]...", help="Values that win over the file's."),
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=0, help="Processes; 0: the fewest with all of the layout at work.")
    ] = 0,
    precision: Annotated[
        Computes, typer.Option(help="fp32; bf16 or fp16, beside fp32; run: that of the config.")
    ] = Computes.fp32,
    logs: Annotated[
        Path | None, typer.Option(help="New folder for the ranks' logs, kept; none: removed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Train a small copy of CONFIG in its layout and on one process, and compare every tensor.

    Ten steps with processes of this machine, on its GPUs where there are enough, then the loss on
    held-out data. Exit code 0: nothing differs by more than rounding explains, in fp32 1e-5; 5:
    something does, and the tensor that did first is named.
    """
    from roots.cli.progress import shown
    from roots.config import load_config
    from roots.config.shrink import default_ranks
    from roots.log import configure
    from roots.verify.proof import most_ranks
    from roots.verify.proof import verify as prove

    loaded = load_config(config, overrides or ())
    tell_notes(loaded)
    configure()
    with ExitStack() as stack:
        folder = logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        told = stack.enter_context(shown("verifying"))
        chosen = loaded.training.precision if precision is Computes.run else precision.value
        ranks = ranks or default_ranks(loaded, most_ranks())
        verdict = prove(loaded, ranks, folder, told, chosen)
    if as_json:
        typer.echo(json.dumps(report(verdict), indent=2))
    else:
        _print_table(verdict)
    if not verdict.equal:
        raise typer.Exit(int(ExitCode.DIFFERENT))


def report(verdict: Verdict) -> dict[str, Any]:
    """The verdict as plain values; differences are null where something is missing."""
    return {
        "equal": verdict.equal,
        "precision": verdict.config.training.precision,
        **_plain(verdict.comparison),
        "against_fp32": {
            name: _plain(comparison)
            for name, comparison in zip(_AGAINST_FP32, verdict.against_fp32, strict=False)
        },
        "ranks": verdict.ranks,
        "device": verdict.device,
        "reduced": list(verdict.reduced),
        "not_shown": list(verdict.not_shown),
        "seconds": round(verdict.seconds, 1),
        "parallel": verdict.config.parallel.model_dump(mode="json"),
        "model": verdict.config.model.model_dump(mode="json"),
        "losses": verdict.reference.losses,
        "evaluation": verdict.reference.evaluation,
    }


_AGAINST_FP32 = ("one_process", "layout")


def _plain(comparison: Comparison) -> dict[str, Any]:
    first = comparison.first
    return {
        "tolerance": comparison.tolerance,
        "first_difference": None if first is None else first.describe(),
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
    losses, precision = verdict.reference.losses, verdict.config.training.precision
    from roots.config.batch import plan_batch

    data = plan_batch(verdict.config, verdict.ranks).data_parallel
    sequence = " with sequence" if parallel.sequence else ""
    schedule = f" ({parallel.pipeline_schedule})" if parallel.pipeline > 1 else ""
    expert = f", expert {parallel.expert}" if parallel.expert > 1 else ""
    typer.echo(
        f"{verdict.ranks} ranks ({verdict.device}): tensor {parallel.tensor}{sequence} x pipeline "
        f"{parallel.pipeline}{schedule} x context {parallel.context} x data {data}{expert}, "
        f"ZeRO {parallel.zero_stage}, recompute {parallel.recompute}; "
        f"against one process, in {precision}"
    )
    for line in verdict.reduced:
        typer.echo(f"not as in the config: {line}")
    for line in verdict.not_shown:
        typer.echo(f"not shown: {line}")
    typer.echo(
        f"model: {model.num_layers} layers of {model.hidden_size}, {model.num_heads} heads, "
        f"{model.sequence_length} tokens; loss {losses[0]:.4f} to {losses[-1]:.4f} "
        f"in {len(losses)} steps, {verdict.reference.evaluation:.4f} on held-out data"
    )
    _print_differences(verdict.comparison)
    for whose, comparison in zip(_AGAINST_FP32, verdict.against_fp32, strict=False):
        numbers = ", ".join(
            f"{comparison.worst(kind).relative:.1e} {kind}"
            for kind in ("loss", "gradient norm", "gradient", "weight")
        )
        bound = f"at most {comparison.tolerance:.1e}"
        typer.echo(f"{whose.replace('_', ' ')} against one process in fp32: {numbers}; {bound}")
    _print_end(verdict)


def _print_end(verdict: Verdict) -> None:
    for comparison in (verdict.comparison, *verdict.against_fp32):
        if comparison.first is not None:
            against = "" if comparison is verdict.comparison else " against fp32"
            typer.echo(f"different{against}: first {comparison.first.describe()}")
            return
    tolerance, seconds = verdict.comparison.tolerance, verdict.seconds
    typer.echo(f"equal: nothing differs by more than {tolerance:.1g} ({seconds:.0f} s)")


def _print_differences(comparison: Comparison) -> None:
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


def _mark(difference: Difference, comparison: Comparison) -> str:
    """What stands behind a line that is beyond the tolerance."""
    if difference.relative <= comparison.tolerance:
        return ""
    return "  (not held whole)" if difference.kind == "coverage" else "  DIFFERS"
