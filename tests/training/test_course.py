"""A run that goes on: the config is in force at every stage, each change is told, once."""

from __future__ import annotations

import logging
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from roots.checkpoint.folders import read_config, step_name
from roots.checkpoint.manifest import describe_files, read_manifest, write_manifest
from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.config.load import load_config
from roots.device import launch_environment
from roots.errors import RootsError
from roots.log import get_logger
from roots.training.assemble import assemble, start_process
from roots.training.callbacks.metrics import read_metrics
from roots.training.callbacks.peak import Peak
from roots.training.course import changed_fields, leaves_the_course, rate_change
from roots.training.loop import train_loop
from tests.helpers.distributed import run_distributed
from tests.helpers.manifests import turn_into_version_1
from tests.helpers.runs import small_config, write_dataset

KINDS: list[tuple[str, dict[str, Any]]] = [
    *(("fp32", {"zero_stage": stage}) for stage in range(4)),
    ("bf16", {"zero_stage": 1}),
    ("fp16", {"zero_stage": 2}),
    ("fp16", {"zero_stage": 3}),
]
PIPELINES: list[tuple[str, dict[str, Any]]] = [
    ("bf16", {"pipeline": 2}),
    ("bf16", {"expert": 2}),
]
STEPS = 3
NEW: dict[str, dict[str, Any]] = {
    "training": {"gradient_clipping": 0.01},
    "optimizer": {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.7, "epsilon": 1e-3},
    "loss_scale": {"window": 3, "hysteresis": 4, "minimum": 2.0},
}

PEAK = Peak(1e12, "assumed")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("course") / "data")


def config_of(
    prefix: Path, folder: Path, name: str, precision: str = "fp32", **sections: dict[str, Any]
) -> RunConfig:
    training = {"steps": STEPS, "precision": precision, **sections.pop("training", {})}
    optimizer = {"implementation": "torch", **sections.pop("optimizer", {})}
    loss_scale = {"initial_power": 8, "window": 100, **sections.pop("loss_scale", {})}
    return small_config(
        prefix,
        folder,
        run={"name": name},
        training=training,
        optimizer=optimizer,
        loss_scale=loss_scale,
        **sections,
    )


def train(rank: int, world_size: int, configs: list[RunConfig]) -> list[dict[str, Any]]:
    """Train every config in turn; of each: what was said, and the settings it ended with."""
    environment = launch_environment()
    device = start_process(environment, environment.local_rank)
    found = []
    logger = get_logger("training")
    logger.setLevel(logging.INFO)
    for config in configs:
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record, lines=lines: lines.append(record.getMessage())  # type: ignore[method-assign,misc]
        logger.addHandler(handler)
        with ExitStack() as stack:
            # Measuring the processor would take longer than the run.
            stack.enter_context(patch("roots.training.assemble.device_peak", return_value=PEAK))
            try:
                run = assemble(config, plan_batch(config, world_size), device, stack)
            except RootsError as error:
                found.append({"refused": error.lines})
                continue
            finally:
                logger.removeHandler(handler)
            groups = [
                {name: value for name, value in group.items() if name != "params"}
                for group in run.engine.deepspeed.optimizer.param_groups
            ]
            optimizer = run.engine.deepspeed.optimizer
            scaler = dict(getattr(getattr(optimizer, "loss_scaler", None), "__dict__", {}))
            clip = getattr(optimizer, "clip_grad", None)
            logger.addHandler(handler)
            train_loop(run)
            logger.removeHandler(handler)
        found.append({"lines": lines, "groups": groups, "clip": clip, "scaler": scaler})
    return found


@pytest.mark.parametrize(("ranks", "kinds"), [(1, KINDS), (2, PIPELINES)], ids=["one", "two"])
def test_settings_of_the_config_are_in_force(
    ranks: int, kinds: list[tuple[str, dict[str, Any]]], prefix: Path, tmp_path: Path
) -> None:
    configs = []
    for index, (precision, parallel) in enumerate(kinds):
        model = {"moe": {"num_experts": 4 if "expert" in parallel else 0}}
        more = {"parallel": parallel, "model": model}
        for steps, sections in ((STEPS - 1, {}), (STEPS, NEW)):
            training = {"steps": steps, **sections.get("training", {})}
            rest = {name: fields for name, fields in sections.items() if name != "training"}
            configs.append(
                config_of(
                    prefix, tmp_path, f"run{index}", precision, training=training, **more, **rest
                )
            )
    for found in run_distributed(train, ranks, configs, timeout_seconds=300):
        for kind, before, after in zip(kinds, found[::2], found[1::2], strict=True):
            assert before["groups"][0]["weight_decay"] == 0.1, kind
            for group in after["groups"]:
                assert group["betas"] == (0.8, 0.7), kind
                assert group["eps"] == 1e-3, kind
                assert group["weight_decay"] in (0.3, 0.0), kind
            assert after["groups"][0]["weight_decay"] == 0.3, kind
            if "zero_stage" not in kind[1] or kind[1]["zero_stage"] > 0:
                assert after["clip"] == 0.01, kind
            if kind[0] == "fp16":
                wanted = {"scale_window": 3, "min_scale": 2.0, "delayed_shift": 4}
                assert {name: after["scaler"][name] for name in wanted} == wanted, kind
    for config in configs[1::2]:
        records = read_metrics(config.run_directory / "metrics.jsonl")
        assert [record.step for record in records] == [1, 2, 3]


def test_what_is_told_when_a_run_goes_on(prefix: Path, tmp_path: Path) -> None:
    """Every change in a line with before and after, the rate that jumps, and a run at its end."""
    first = config_of(prefix, tmp_path, "run", training={"steps": 4})
    other = write_dataset(tmp_path / "other")
    second = config_of(
        prefix,
        tmp_path,
        "run",
        training={"steps": 6},
        optimizer={"weight_decay": 0.3},
        model={"dropout": 0.2},
        data={"train": [str(other)], "phase": 1},
    )
    (found,) = run_distributed(train, 1, [first, second, second])
    told = [line for line in found[1]["lines"] if "was" in line or "learning rate" in line]
    assert told == [
        "model.dropout=0.2: was 0.0 in the checkpoint",
        "training.steps=6: was 4 in the checkpoint",
        "optimizer.weight_decay=0.3: was 0.1 in the checkpoint",
        f"data.train=[{{'prefix': '{other}', 'weight': 1.0}}]: "
        f"was [{{'prefix': '{prefix}', 'weight': 1.0}}] in the checkpoint",
        "data.phase=1: was 0 in the checkpoint",
        "learning rate: 0.0055 in step 4, 0.0055 in step 5, which would have had 0.001 under the "
        "checkpoint's config",
    ]
    finished = (
        "training.steps=6: the run has done 6 steps, so it is finished and nothing was trained; to "
        "go on set training.steps higher, to begin another run set another run.name"
    )
    assert finished in found[2]["lines"]
    assert finished not in found[1]["lines"]
    # Beside every checkpoint lies the config of the part that has written it.
    checkpoints = second.run_directory / "checkpoints"
    assert changed_fields(first, read_config(checkpoints / step_name(4))) == {}
    assert changed_fields(second, read_config(checkpoints / step_name(6))) == {}
    assert changed_fields(second, load_config(second.run_directory / "config.yaml")) == {}


def test_lengthened_run_is_told_its_rates(prefix: Path, tmp_path: Path) -> None:
    def config(steps: int, **schedule: Any) -> RunConfig:
        fields = {"warmup_steps": 2, "min_learning_rate": 0.0, **schedule}
        return config_of(
            prefix,
            tmp_path,
            "run",
            training={"steps": steps},
            optimizer={"learning_rate": 3e-3},
            schedule=fields,
        )

    assert rate_change(config(20), config(40), 20) == (
        "learning rate: 2.27884e-05 in step 20, 0.00162387 in step 21, which would have had 0 "
        "under the checkpoint's config"
    )
    # Nothing jumps, or no step is to come.
    assert rate_change(config(20), config(20), 10) is None
    assert rate_change(config(20, name="constant"), config(40, name="constant"), 20) is None
    assert rate_change(config(40), config(20), 20) is None


def test_what_leaves_the_course(prefix: Path, tmp_path: Path) -> None:
    before = config_of(prefix, tmp_path, "a")
    beside = config_of(
        prefix, tmp_path, "b", evaluation={"steps": 7}, checkpoint={"resume": "x", "keep_last": 9}
    )
    assert list(changed_fields(before, beside)) == ["evaluation.steps", "checkpoint.keep_last"]
    assert not leaves_the_course(changed_fields(before, beside), None)
    assert leaves_the_course({}, "learning rate: ...")
    scaled = config_of(prefix, tmp_path, "a", loss_scale={"initial_power": 9})
    assert changed_fields(before, scaled) == {
        "loss_scale.initial_power": "loss_scale.initial_power=9: was 8 in the checkpoint "
        "(no effect on a run that goes on: the scale is the checkpoint's)"
    }
    assert leaves_the_course(changed_fields(before, scaled), None)


class Marker:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_states_that_would_run_code_are_refused(prefix: Path, tmp_path: Path) -> None:
    """In whichever of DeepSpeed's files, in the manifest or not, and written in whichever way."""
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    config = config_of(
        prefix,
        tmp_path,
        "run",
        parallel={"zero_stage": 2},
        training={"steps": 2},
        checkpoint={"deepspeed_files": True},
    )
    run_distributed(train, 1, [config])
    marker = tmp_path / "was-run"
    folder = config.run_directory / "checkpoints" / step_name(2)
    turn_into_version_1(folder)
    went_on = config_of(prefix, tmp_path, "run", parallel={"zero_stage": 2}, training={"steps": 3})
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        state = torch.load(path, weights_only=False)
        for zipped in (True, False):
            torch.save(
                {**state, "more": Marker(marker)}, path, _use_new_zipfile_serialization=zipped
            )
            assert zipfile.is_zipfile(path) == zipped
            seal(folder)
            (found,) = run_distributed(train, 1, [went_on])
            (line,) = found[0]["refused"]
            assert line.startswith(f"checkpoint file='{path}': holds ")
            assert ("pathlib.PosixPath" if zipped else "something else than torch.save") in line
            assert line.endswith(
                ", and no training state does; it was not loaded; resume from a checkpoint that "
                "ROOTS saved"
            )
            assert not marker.exists()
        path.write_bytes(whole)
    seal(folder)
    (found,) = run_distributed(train, 1, [went_on])
    assert "refused" not in found[0]


def seal(folder: Path) -> None:
    """Write the digests of the files as they are now."""
    found = read_manifest(folder)
    files = describe_files(folder, sorted(found.files))
    write_manifest(folder, type(found)(**{**vars(found), "files": files}))
