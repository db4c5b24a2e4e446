"""The loss plot: a readable PNG, gaps for skipped steps, and one-line errors."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from roots.errors import RootsError
from roots.training.callbacks.metrics import EvaluationRecord, EvaluationWriter, MetricsWriter
from roots.training.callbacks.plot import draw_losses, figure_class, plot_losses, smoothed
from tests.helpers.records import step_record


def write_run(directory: Path, losses: list[float]) -> Path:
    metrics = MetricsWriter(directory / "metrics.jsonl")
    for step, loss in enumerate(losses, start=1):
        metrics.write(step_record(step, loss=loss, skipped=not math.isfinite(loss)))
    metrics.close()
    return metrics.path


@pytest.mark.parametrize("count", [1, 10, 200])
def test_plot_is_a_png_of_the_documented_size(tmp_path: Path, count: int) -> None:
    image = pytest.importorskip("matplotlib.image", reason="the extra `plots` is missing")
    path = write_run(tmp_path, [5.0 - math.log(1 + step) / 2 for step in range(count)])
    evaluations = EvaluationWriter(tmp_path / "evaluations.jsonl")
    evaluations.write(EvaluationRecord.of(0, 5.5))
    evaluations.write(EvaluationRecord.of(count, 4.5))
    evaluations.close()
    out = tmp_path / "plots" / "loss.png"
    plot_losses(path, out)
    pixels = image.imread(out)
    assert pixels.shape[:2] == (600, 1080)
    # Blue training curve and orange evaluations are both there.
    assert ((pixels[..., 2] > 0.6) & (pixels[..., 0] < 0.3)).any()
    assert ((pixels[..., 0] > 0.9) & (pixels[..., 2] < 0.2)).any()


def test_plot_does_without_evaluations_and_with_skipped_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    path = write_run(tmp_path, [5.0, math.nan, 4.0])
    plot_losses(path, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    assert smoothed([1.0, math.nan, 3.0, math.inf, 8.0], 3) == [1.0, 2.0, 3.0, 5.5, 8.0]
    assert math.isnan(smoothed([math.nan], 3)[0])


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    values = [float(number**2) for number in range(20)]
    assert smoothed(values, 5)[10] == pytest.approx(sum(values[8:13]) / 5)
    assert smoothed(values, 1) == pytest.approx(values)


def test_marks_stand_at_their_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    figure = figure_class()(figsize=(5, 3), layout="constrained")
    records = [step_record(step) for step in range(1, 10)]
    draw_losses(figure, records, [], "", {4: "phase 1", 10: "phase 2"})
    axes = figure.axes[0]
    (line,) = [each for each in axes.lines if list(each.get_ydata()) == [0, 1]]
    assert list(line.get_xdata()) == [4, 4]
    # What nothing has been recorded of yet does not stretch the picture.
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("phase 1", (4, 1.0))]
    figure.savefig(tmp_path / "loss.png")


def test_nothing_to_draw_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is missing")
    path = write_run(tmp_path, [math.nan])
    with pytest.raises(RootsError) as caught:
        plot_losses(path, tmp_path / "loss.png")
    assert caught.value.lines == (f"{path}: holds no finite loss to draw; train at least one step",)


def test_missing_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = write_run(tmp_path, [1.0])
    with pytest.raises(RootsError) as caught:
        plot_losses(path, tmp_path / "loss.png")
    assert caught.value.lines == (
        "plot: pictures need matplotlib, which cannot be imported here; pip install .[plots]",
    )
