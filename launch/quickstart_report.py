"""Draw the losses of the quickstart's run and say what it did, in a few lines.

python launch/quickstart_report.py RUN_FOLDER PICTURE.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from roots.training.callbacks.metrics import EVALUATIONS_FILE, read_evaluations, read_metrics
from roots.training.callbacks.plot import plot_losses

METRICS_FILE = "metrics.jsonl"


def main(run: Path, picture: Path) -> None:
    """Read the records of the run, draw, print."""
    steps = read_metrics(run / METRICS_FILE)
    evaluations = read_evaluations(run / EVALUATIONS_FILE)
    plot_losses(run / METRICS_FILE, picture)
    first, last = evaluations[0], evaluations[-1]
    minutes = sum(step.step_seconds for step in steps) / 60
    # The first steps warm caches up.
    settled = sorted(step.tokens_per_second for step in steps[len(steps) // 4 :])
    peak_gib = max(step.memory_bytes for step in steps) / 2**30
    print(
        f"trained {steps[-1].consumed_tokens:,} tokens in {len(steps)} steps and {minutes:.1f} "
        f"minutes, {settled[len(settled) // 2]:,.0f} tokens/s, {peak_gib:.2f} GiB at most in a rank"
    )
    print(
        f"held-out loss {first.loss:.3f} at step {first.step}, {last.loss:.3f} at step "
        f"{last.step}: {last.loss / first.loss:.0%} of the first"
    )
    print(f"losses drawn to {picture}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: quickstart_report.py RUN_FOLDER PICTURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
