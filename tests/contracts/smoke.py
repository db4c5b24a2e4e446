"""ROOTS itself under the installed versions: a few short runs, each against what it must equal."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.distributed import RankFailure, run_distributed

RANKS = (1, 2)
STAGES = (1, 3)


def check_here(rank: int, ranks: int, folder: str) -> dict[str, str]:
    """By name the outcome of every check for so many ranks: "holds", or what was raised."""
    from tests.contracts.tiny import silent

    checks: dict[int, list[Callable[[int, Path], None]]] = {
        1: [kernels_load, fp16_overflow_skips_a_step, a_resumed_run_equals_an_unbroken_one],
        2: [zero_1_equals_one_process, a_pipeline_equals_one_process, a_folded_pipeline],
    }
    found = {}
    for check in checks[ranks]:
        try:
            with silent():
                check(rank, Path(folder))
            found[check.__name__] = "holds"
        except BaseException:  # noqa: BLE001 - whatever it is, it is reported
            found[check.__name__] = traceback.format_exc(limit=-3)
    return found


def config_of(folder: Path, name: str, **sections: dict[str, Any]) -> Any:
    """A small run of four steps."""
    from tests.helpers.runs import small_config

    optimizer = {"implementation": "torch", **sections.pop("optimizer", {})}
    run = {"name": name, "directory": str(folder)}
    model = {"num_layers": 2, **sections.pop("model", {})}
    return small_config(
        folder / "data", folder, run=run, optimizer=optimizer, model=model, **sections
    )


def kernels_load(rank: int, folder: Path) -> None:
    """The compiled library, whatever torch it was built with, gives what the reference gives."""
    import torch

    from roots.ops import rms_norm

    x, weight = torch.randn(3, 17), torch.randn(17)
    wanted = rms_norm(x, weight, epsilon=1e-5, implementation="reference")
    torch.testing.assert_close(rms_norm(x, weight, epsilon=1e-5, implementation="roots"), wanted)


def fp16_overflow_skips_a_step(rank: int, folder: Path) -> None:
    """One infinite gradient skips its step and halves the scale, under ZeRO 1 and 3."""
    from tests.parallel.layouts import OVERFLOW_STEP, overflow_on_last_rank, train_curve

    for stage in STAGES:
        config = config_of(
            folder,
            "fp16",
            training={"precision": "fp16", "steps": OVERFLOW_STEP + 2},
            loss_scale={"initial_power": 8, "hysteresis": 1},
            parallel={"zero_stage": stage},
        )
        curve = train_curve(0, 1, config, overflow_on_last_rank, False)
        assert curve.skipped == [step == OVERFLOW_STEP for step in range(OVERFLOW_STEP + 2)]
        assert curve.scales[-1] == 2.0**7, curve.scales


def a_resumed_run_equals_an_unbroken_one(rank: int, folder: Path) -> None:
    """Four steps, and two and two with a signal between them, end in the same files: ZeRO 1, 3."""
    from roots.errors import ExitCode
    from tests.integration.runs import differences, run, state_of

    for stage in STAGES:
        names = [f"whole-{stage}", f"broken-{stage}"]
        whole, broken = (config_of(folder, each, parallel={"zero_stage": stage}) for each in names)
        assert run(0, 1, whole) == ExitCode.DONE
        assert run(0, 1, broken, stop_after=2) == ExitCode.INTERRUPTED
        assert run(0, 1, broken) == ExitCode.DONE
        states = [state_of(folder / each / "checkpoints" / "step_00000004") for each in names]
        assert differences(*states) == []


def losses(folder: Path, name: str, **sections: dict[str, Any]) -> list[float]:
    """Losses of four steps in the layout of `sections`."""
    from tests.parallel.layouts import train_curve

    return list(train_curve(0, 2, config_of(folder, name, **sections), None, False).losses)


def same(found: list[float], folder: Path) -> None:
    """Hold losses against those that one process has left in a file."""
    wanted = json.loads((folder / "losses.json").read_text())
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert abs(mine - other) <= 1e-5 * abs(other), (found, wanted)


def zero_1_equals_one_process(rank: int, folder: Path) -> None:
    """Two replicas under ZeRO 1."""
    same(losses(folder, "zero", parallel={"zero_stage": 1}), folder)


def a_pipeline_equals_one_process(rank: int, folder: Path) -> None:
    """Two stages, 1F1B."""
    same(losses(folder, "pipeline", parallel={"pipeline": 2}), folder)


def a_folded_pipeline(rank: int, folder: Path) -> None:
    """DualPipeV's two stages a rank."""
    layout = {"pipeline": 2, "pipeline_schedule": "dualpipev"}
    found = losses(folder, "folded", parallel=layout, model={"num_layers": 4})
    assert len(found) == 4


def outcomes() -> dict[str, str]:
    """By name what became of every check."""
    from tests.helpers.runs import write_dataset

    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder, "data"))
        try:
            (curve,) = run_distributed(one_process, 1, folder, timeout_seconds=500)
        except RankFailure as failure:
            # Such as a refusal of the version: then nothing else runs either.
            return {"a_plain_run": str(failure).splitlines()[-1]}
        Path(folder, "losses.json").write_text(json.dumps(curve))
        for ranks in RANKS:
            found |= run_distributed(check_here, ranks, folder, timeout_seconds=500)[0]
    return found


def one_process(rank: int, ranks: int, folder: str) -> list[float]:
    """The losses that the layouts have to equal."""
    from tests.contracts.tiny import silent

    with silent():
        return losses(Path(folder), "one")
