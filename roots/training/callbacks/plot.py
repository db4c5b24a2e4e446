"""The picture of a run: training loss, held-out loss and learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from roots.errors import RootsError, problem
from roots.files import publish, removed_on_error
from roots.training.callbacks.metrics import (
    EVALUATIONS_FILE,
    EvaluationRecord,
    StepRecord,
    read_evaluations,
    read_metrics,
)

WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.0, 5.0, 120
# From this many points on, a smoothed line is drawn over the raw one, over this share of the run.
SMOOTH_FROM_POINTS = 60
SMOOTH_SHARE = 0.02


def plot_losses(metrics_path: Path, out_png: Path) -> None:
    """Draw the run of `metrics_path` to `out_png`, with the evaluations found beside it.

    Steps without a finite loss (overflow) leave a gap. Raises RootsError when there is nothing to
    draw, a file cannot be used, or matplotlib is not installed.
    """
    figure_cls = figure_class()
    steps = read_metrics(metrics_path)
    beside = metrics_path.with_name(EVALUATIONS_FILE)
    evaluations = read_evaluations(beside) if beside.exists() else []
    losses = [one.loss for one in steps] + [one.loss for one in evaluations]
    if not any(math.isfinite(loss) for loss in losses):
        rule, fix = "holds no finite loss to draw", "train at least one step"
        raise RootsError(problem(str(metrics_path), None, rule, fix))
    figure = figure_cls(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    draw_losses(figure, steps, evaluations, metrics_path.resolve().parent.name)
    save_png(figure, out_png)


def save_png(figure: Any, out_png: Path, dots_per_inch: int = DOTS_PER_INCH) -> None:
    """Write `figure` whole or not at all. Raises RootsError if that cannot be."""
    try:
        out_png.parent.mkdir(parents=True, exist_ok=True)
        temporary = out_png.with_name(f".{out_png.name}.partial")
        with removed_on_error(temporary):
            figure.savefig(temporary, dpi=dots_per_inch, format="png")
            publish(temporary, out_png)
    except OSError as error:
        rule = f"cannot be written ({error.strerror})"
        raise RootsError(problem(str(out_png), None, rule, "choose another file")) from error


def smoothed(losses: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` neighbours (fewer at the ends), leaving out what is not finite."""
    finite = [math.isfinite(loss) for loss in losses]
    sums = [0.0, *accumulate(loss if good else 0.0 for loss, good in zip(losses, finite))]
    counts = [0, *accumulate(int(good) for good in finite)]
    half = window // 2
    means = []
    for middle in range(len(losses)):
        start, stop = max(0, middle - half), min(len(losses), middle + half + 1)
        count = counts[stop] - counts[start]
        means.append((sums[stop] - sums[start]) / count if count else math.nan)
    return means


def draw_losses(
    figure: Any,
    steps: Sequence[StepRecord],
    evaluations: Sequence[EvaluationRecord],
    title: str,
    marks: Mapping[int, str] | None = None,
) -> None:
    """Fill the figure: losses on the left axis, learning rate on the right one.

    marks: words at steps, each with a line over the height of the picture.
    """
    loss_axes = figure.add_subplot()
    rate_axes = loss_axes.twinx()
    numbers = [one.step for one in steps]
    losses = [one.loss for one in steps]
    rate_axes.plot(
        numbers, [one.lr for one in steps], color="tab:gray", linestyle=":", label="learning rate"
    )
    if len(losses) < SMOOTH_FROM_POINTS:
        loss_axes.plot(numbers, losses, color="tab:blue", label="training loss")
    else:
        window = max(3, round(SMOOTH_SHARE * len(losses)) | 1)  # odd: as many on both sides
        loss_axes.plot(numbers, losses, color="tab:blue", alpha=0.3, linewidth=0.8)
        label = f"training loss (mean of {window} steps)"
        loss_axes.plot(numbers, smoothed(losses, window), color="tab:blue", label=label)
    if evaluations:
        held_out = [one.loss for one in evaluations]
        places = [one.step for one in evaluations]
        loss_axes.plot(places, held_out, color="tab:orange", marker="o", label="held-out loss")
    for step, words in (marks or {}).items():
        if numbers and step <= numbers[-1]:
            loss_axes.axvline(step, color="tab:purple", linestyle="--", linewidth=0.8)
            loss_axes.annotate(
                words,
                # At the upper end of the line, a little to its right.
                (step, 1.0),
                (3, -3),
                xycoords=loss_axes.get_xaxis_transform(),
                textcoords="offset points",
                rotation=90,
                verticalalignment="top",
                color="tab:purple",
                fontsize="small",
            )
    loss_axes.set_xlabel("step")
    loss_axes.set_ylabel("loss (nats per token)")
    loss_axes.grid(alpha=0.3)
    # The left axes are drawn over the right ones, so that no curve hides behind the rate.
    loss_axes.set_zorder(rate_axes.get_zorder() + 1)
    loss_axes.patch.set_visible(False)
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    loss_axes.set_title(title)
    handles = [*loss_axes.get_legend_handles_labels()[0], *rate_axes.get_lines()]
    loss_axes.legend(handles=handles, loc="upper right")


def figure_class() -> Any:
    """Import matplotlib only here; its Figure draws to a file without a display or global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        rule = "pictures need matplotlib, which cannot be imported here"
        raise RootsError(problem("plot", None, rule, "pip install .[plots]")) from error
    return Figure
