"""The pictures of a report, drawn by matplotlib: each as a PNG and as SVG for a page.

Colours of curves carry on white and on black; the ink of axes and words is the page's own in SVG.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from roots.training.callbacks.plot import draw_losses, figure_class, save_png
from roots.training.report.account import Account
from roots.training.report.facts import MEANINGS
from roots.training.report.read import Report

# On a phone the page shows them at their own size.
WIDTH_INCHES, HEIGHT_INCHES = 5.0, 3.0
DOTS_PER_INCH = 200
# More points than this are not told apart in the width of a picture.
MOST_POINTS = 1500
# With more ranks than this, a curve for each is none.
MOST_CURVES = 8
_INK = "#273238"
_STYLE = {
    "font.size": 8,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.2,
    "legend.framealpha": 0.0,
    "legend.fontsize": 7,
    "svg.fonttype": "none",
    "svg.hashsalt": "roots",
}
_COLOURS = {
    "compute": "tab:blue",
    "communication": "tab:cyan",
    "evaluation": "tab:green",
    "data": "tab:olive",
    "checkpoint": "tab:orange",
    "restart": "tab:purple",
    "other": "tab:gray",
    "lost": "tab:red",
    "idle": "lightgray",
}
_UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class Picture:
    """name: of its file; caption: what it shows; draw: puts it on a figure."""

    name: str
    caption: str
    draw: Callable[[Any], None]


def pictures_of(report: Report) -> Iterator[Picture]:
    """Those for which the run has anything to show."""
    steps, account = report.metrics, report.account
    losses = [one.loss for one in (*steps, *report.evaluations)]
    if any(map(math.isfinite, losses)):
        caption = "Loss, and that of held-out text"
        phases = {one.step: f"phase {one.phase}" for one in report.phases}
        held_out = report.evaluations
        yield Picture("loss", caption, lambda to: draw_losses(to, steps, held_out, "", phases))
    if steps:
        yield _curve(report, "throughput", "Throughput", "tokens/s", "tokens_per_second")
        caption = "Peak memory of the rank that needs most"
        yield _curve(report, "memory", caption, "GiB", "memory_bytes", factor=2.0**-30)
    if any(one.loss_scale != 1.0 for one in steps):
        yield _curve(report, "loss_scale", "Loss scale", "loss scale", "loss_scale", logarithmic=2)
    if any(one.grad_norm > 0 for one in steps):
        caption = "Gradient norm before clipping"
        yield _curve(report, "gradient_norm", caption, "norm", "grad_norm", logarithmic=10)
    if report.rank_times:
        yield Picture(
            "step_seconds", "Seconds a step on every rank", lambda to: _draw_ranks(to, report)
        )
    elif steps:
        yield _curve(report, "step_seconds", "Seconds a step", "seconds", "step_seconds")
    if account is not None and account.wall > 0:
        caption = "Goodput: where the time went, and the way of the run"
        yield Picture("goodput", caption, lambda to: _draw_goodput(to, account))


def write_pictures(pictures: Sequence[Picture], folder: Path) -> dict[str, str]:
    """Write NAME.png of each into `folder`; return the SVG of each by name.

    Raises RootsError where matplotlib is missing or a file cannot be written.
    """
    figure_cls = figure_class()
    from matplotlib import rc_context

    drawn = {}
    for picture in pictures:
        with rc_context(_STYLE):
            figure = figure_cls(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
            picture.draw(figure)
            save_png(figure, folder / f"{picture.name}.png", DOTS_PER_INCH)
            drawn[picture.name] = _inline_svg(figure, picture.caption)
    return drawn


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of the points: in every stretch its lowest and highest one, in order."""
    size = math.ceil(2 * len(points) / MOST_POINTS)
    if size <= 2:
        return list(points)
    kept = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [point for point in part if math.isfinite(point[1])] or part[:1]
        ends = {min(finite, key=lambda one: one[1]), max(finite, key=lambda one: one[1])}
        kept += sorted(ends)
    return kept


def _curve(
    report: Report,
    name: str,
    caption: str,
    label: str,
    field: str,
    *,
    factor: float = 1.0,
    logarithmic: int = 0,
) -> Picture:
    """A field of the records over the steps; `logarithmic`: the base of its axis if it is that."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        points = [(one.step, factor * getattr(one, field)) for one in report.metrics]
        axes.plot(*zip(*thinned(points)), marker=_marker(points))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if logarithmic:
            axes.set_yscale("log", base=logarithmic)
        else:
            _from_zero(axes)

    return Picture(name, caption, draw)


def _draw_ranks(figure: Any, report: Report) -> None:
    """A curve a rank; of many ranks the median, the range, and the slowest one."""
    axes = figure.add_subplot()
    times = report.rank_times
    ranks = min(len(one.seconds) for one in times)
    if ranks <= MOST_CURVES:
        for rank in range(ranks):
            points = [(one.step, one.seconds[rank]) for one in times]
            axes.plot(*zip(*thinned(points)), marker=_marker(points), label=f"rank {rank}")
    else:
        means = [sum(one.seconds[rank] for one in times) for rank in range(ranks)]
        slowest = means.index(max(means))
        steps = [one.step for one in times]
        ends = [(min(one.seconds), max(one.seconds)) for one in times]
        axes.fill_between(steps, *zip(*ends), alpha=0.3, label=f"range of {ranks} ranks")
        axes.plot(steps, [median(one.seconds) for one in times], label="median")
        axes.plot(steps, [one.seconds[slowest] for one in times], label=f"rank {slowest}")
    axes.set_xlabel("step")
    axes.set_ylabel("seconds")
    _from_zero(axes)
    axes.legend()


def _draw_goodput(figure: Any, account: Account) -> None:
    """A bar of all seconds, and below it the steps over time, with what was lost."""
    bar, way = figure.subplots(2, height_ratios=(1, 5))
    left = 0.0
    for name in MEANINGS:
        share = 100 * account.seconds[name] / account.wall
        if share > 0:
            label = f"{name} {share:.1f}%"
            bar.barh(0, share, left=left, color=_COLOURS[name], label=label)
            left += share
    bar.set_xlim(0, 100)
    bar.set_axis_off()
    bar.set_title(f"goodput {100 * account.goodput:.1f}%")
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.0)
    _draw_way(way, account)


def _draw_way(axes: Any, account: Account) -> None:
    origin = account.starts[0].started
    unit, name = next(each for each in _UNITS if account.wall >= 2 * each[0] or each[0] == 1.0)

    def place(points: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
        return [((time - origin) / unit, step) for time, step in points]

    starts = account.starts
    for number, start in enumerate(starts):
        later = [one.first_step for one in starts[number + 1 :] if one.first_step is not None]
        kept = min(later, default=math.inf)
        points = place(start.course)
        lost = [at for at in points if at[1] > kept]
        before = [at for at in points if at[1] <= kept]
        axes.plot(*zip(*thinned(before)), color=_COLOURS["compute"])
        if lost:
            axes.plot(*zip(*thinned([*before[-1:], *lost])), color=_COLOURS["lost"])
        if start.saves:
            axes.plot(*zip(*place(start.saves)), ".", color=_COLOURS["checkpoint"])
        if start.failed and not (account.running and start is starts[-1]):
            # Where it ended, even if it never came to training.
            (end,) = place([(start.ended, start.last_step)])
            axes.plot(*end, "x", color=_COLOURS["lost"])
    for before, after in zip(starts, starts[1:]):
        ends = [(time - origin) / unit for time in (before.ended, after.started)]
        axes.axvspan(*ends, color=_COLOURS["idle"], alpha=0.5, linewidth=0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{name} (dots: saves, crosses: failures, red: lost work, gray: nothing ran)")
    axes.set_ylabel("step")
    _from_zero(axes)


def _from_zero(axes: Any) -> None:
    """Let the vertical axis begin at 0, with some room above the data."""
    axes.set_ylim(0, 1.05 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else 1)


def _marker(points: Sequence[object]) -> str:
    """A single point is no line."""
    return "." if len(points) == 1 else ""


def _inline_svg(figure: Any, caption: str) -> str:
    """The figure as an <svg> element of an HTML page, without ids but those that it refers to."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    # The size is the page's: the picture keeps its proportions by its viewBox.
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1).replace(
        _INK, "currentColor"
    )
