"""Stopping and going on: N steps are k + (N - k) steps, bit for bit."""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from roots.checkpoint.folders import partial_folder, resolve_checkpoint, step_name
from roots.checkpoint.manifest import read_manifest
from roots.checkpoint.weights import WeightStore
from roots.config import RunConfig
from roots.data.batch import Batch
from roots.errors import ExitCode
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.parallel.shard import shard_of
from roots.training.callbacks.ledger import LEDGER_FILE
from roots.training.callbacks.metrics import read_metrics
from roots.training.engine.step import Engine, StepResult
from roots.training.report.account import read_account
from tests.helpers.checkpoints import flip_bit
from tests.helpers.decoders import build_decoder
from tests.helpers.distributed import RankFailure, run_distributed
from tests.helpers.runs import small_config, write_dataset
from tests.integration.runs import differences, run, state_of

STEPS, STOP = 7, 3
# Wall-clock fields differ between any two runs.
TIMING = {"step_seconds", "tokens_per_second", "tflops", "mfu", "memory_bytes"}

LAYOUTS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "fp32-zero0": (1, "fp32", {"zero_stage": 0}),
    "fp16-zero1": (1, "fp16", {"zero_stage": 1}),
    "bf16-zero1-dp2": (2, "bf16", {"zero_stage": 1}),
    "fp16-zero2-dp2": (2, "fp16", {"zero_stage": 2}),
    # One replica, whose optimizer updates the weights themselves.
    "fp32-zero2": (1, "fp32", {"zero_stage": 2}),
    "fp32-zero3-dp2": (2, "fp32", {"zero_stage": 3}),
    "fp16-tp2": (2, "fp16", {"tensor": 2}),
    "fp32-pp2": (2, "fp32", {"pipeline": 2}),
    "bf16-pp2-folded": (2, "bf16", {"pipeline": 2, "pipeline_schedule": "dualpipev"}),
    "bf16-ep2": (2, "bf16", {"expert": 2}),
    "fp32-ep2": (2, "fp32", {"expert": 2, "zero_stage": 0}),
    "bf16-ep2-pp2": (4, "bf16", {"expert": 2, "pipeline": 2}),
}
MORE_LAYOUTS = ("fp32-ep2", "bf16-ep2-pp2")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("resume") / "data")


def config_of(prefix: Path, folder: Path, name: str, layout: str, **more: Any) -> RunConfig:
    _, precision, parallel = LAYOUTS[layout]
    return small_config(
        prefix,
        folder,
        run={"name": name},
        parallel=parallel,
        model={"dropout": 0.1, "moe": {"num_experts": 4 if "expert" in parallel else 0}},
        training={"steps": STEPS, "precision": precision},
        # A window of 2 makes the fp16 scale move within the run, so a lost scaler shows.
        loss_scale={"initial_power": 8, "window": 2},
        **more,
    )


def lines(config: RunConfig) -> list[dict[str, Any]]:
    records = [dataclasses.asdict(r) for r in read_metrics(config.run_directory / "metrics.jsonl")]
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(each, marks=[pytest.mark.every_layout] if each in MORE_LAYOUTS else [])
        for each in LAYOUTS
    ],
)
def test_stopped_and_resumed_run_equals_the_whole_one(
    layout: str, prefix: Path, tmp_path: Path
) -> None:
    world_size = LAYOUTS[layout][0]
    whole = config_of(prefix, tmp_path, "whole", layout)
    parts = config_of(prefix, tmp_path, "parts", layout)
    assert set(run_distributed(run, world_size, whole)) == {ExitCode.DONE}
    stopped = run_distributed(run, world_size, parts, STOP)
    assert set(stopped) == {ExitCode.INTERRUPTED}
    assert (parts.run_directory / "checkpoints" / step_name(STOP)).is_dir()
    assert set(run_distributed(run, world_size, parts)) == {ExitCode.DONE}

    assert [record["step"] for record in lines(parts)] == list(range(1, STEPS + 1))
    assert lines(parts) == lines(whole)
    account = read_account(parts.run_directory / LEDGER_FILE)
    assert [(one.first_step, one.last_step) for one in account.starts] == [(0, STOP), (STOP, STEPS)]
    assert (account.steps, account.num_saves, account.seconds["lost"]) == (STEPS, 2, 0.0)
    assert (account.seconds["communication"] > 0) == (world_size > 1)
    final = [c.run_directory / "checkpoints" / step_name(STEPS) for c in (whole, parts)]
    first, second = (state_of(folder) for folder in final)
    assert any("exp_avg" in path for path in first)
    assert differences(first, second) == []
    for path in sorted(final[0].rglob("*.safetensors")):
        other = load_file(final[1] / path.relative_to(final[0]))
        assert all(bool((tensor == other[name]).all()) for name, tensor in load_file(path).items())
    # Every tensor of the whole model is there, whichever rank held it.
    stored = {name: tensor.shape for name, tensor in WeightStore(final[0]).tensors.items()}
    decoder = build_decoder(whole.model, Mesh.single(), options=BuildOptions())
    assert stored == {shard_of(p).name: tuple(p.shape) for p in decoder.parameters()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_every_stop_signal_saves_and_ends_with_interrupted(
    number: signal.Signals, prefix: Path, tmp_path: Path
) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    assert run_distributed(run, 1, config, 2, number) == [ExitCode.INTERRUPTED]
    assert [record["step"] for record in lines(config)] == [1, 2]


def test_metrics_have_exactly_the_documented_fields(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "fp16-zero1")
    run_distributed(run, 1, config)
    records = read_metrics(config.run_directory / "metrics.jsonl")
    samples = STEPS * config.training.global_batch_size
    assert records[-1].consumed_samples == samples
    assert read_manifest(resolve_checkpoint(config.run_directory)).consumed_samples == samples
    assert records[-1].consumed_tokens == STEPS * config.tokens_per_step
    assert all(math.isfinite(record.loss) and record.step_seconds > 0 for record in records)
    assert len({record.loss_scale for record in records}) > 1


def refusal(config: RunConfig, world_size: int = 1) -> str:
    with pytest.raises(RankFailure) as caught:
        run_distributed(run, world_size, config)
    return str(caught.value)


def test_checkpoint_of_another_model_is_refused_field_by_field(
    prefix: Path, tmp_path: Path
) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    run_distributed(run, 1, config, 2)
    folder = config.run_directory / "checkpoints" / step_name(2)
    # Of these the one model alone reads rotary_base, and the other alone ffn_hidden_size.
    fields = {"num_layers": 2, "activation": "swiglu", "position": "rotary", "rotary_base": 5e5}
    experts = config.model.moe.model_copy(update={"num_experts": 4, "ffn_hidden_size": 64})
    text = refusal(changed(config, "model", **fields, ffn_hidden_size=96, moe=experts))
    fix = f"use the config stored as {folder / 'config.yaml'}, or another run.name"
    for difference in (
        "num_layers=2: is 4",
        "activation='swiglu': is 'gelu'",
        "position='rotary': is 'learned'",
        "rotary_base=500000.0: is 10000.0",
        "ffn_hidden_size=96: is 128",
        "moe.num_experts=4: is 0",
        "moe.ffn_hidden_size=64: is 128",
    ):
        assert f"model.{difference} in checkpoint {folder}; {fix}" in text


def test_run_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    prefix: Path, tmp_path: Path
) -> None:
    """It saves the steps in between again, and loses nothing else."""
    config = config_of(prefix, tmp_path, "run", "fp32-zero0", checkpoint={"every_steps": 3})
    run_distributed(run, 1, config)
    before, root = lines(config), config.run_directory / "checkpoints"
    last = root / step_name(STEPS)
    flipped = max(last.rglob("*"), key=lambda path: path.stat().st_size)
    flip_bit(flipped)
    assert run_distributed(run, 1, config) == [ExitCode.DONE]
    assert lines(config) == before
    aside = root / f"damaged_{step_name(STEPS)}"
    assert sorted(path.name for path in root.glob("*_*")) == [
        aside.name,
        step_name(6),
        step_name(STEPS),
    ]
    for path in set(last.rglob("*.safetensors")) - {flipped}:
        other = load_file(aside / path.relative_to(last))
        assert all(bool((tensor == other[name]).all()) for name, tensor in load_file(path).items())


def test_fresh_start_over_checkpoints_is_refused(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    run_distributed(run, 1, config, 2)
    fresh = config.model_copy(
        update={"checkpoint": config.checkpoint.model_copy(update={"resume": "never"})}
    )
    assert "checkpoint.resume='never': cannot start afresh over" in refusal(fresh)


def changed(config: RunConfig, section: str, **fields: Any) -> RunConfig:
    part = getattr(config, section).model_copy(update=fields)
    return config.model_copy(update={section: part})


def test_changed_seed_is_refused(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    run_distributed(run, 1, config, 2)
    folder = config.run_directory / "checkpoints" / step_name(2)
    text = refusal(changed(config, "training", seed=5))
    fix = "set it back, or start a new run with another run.name"
    assert f"training.seed=5: is 1234 in checkpoint {folder}; {fix}" in text


def samples_read(rank: int, world_size: int, config: RunConfig) -> list[tuple[int, ...]]:
    """The tokens of every sample that a run trains on, in order."""
    read: list[tuple[int, ...]] = []
    train_step = Engine.train_step

    def reading(self: Engine, micro_batches: Sequence[Batch], rate: float) -> StepResult:
        read.extend(tuple(row) for batch in micro_batches for row in batch.tokens_BT.tolist())
        return train_step(self, micro_batches, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "train_step", reading)
        assert run(rank, world_size, config) == ExitCode.DONE
    return read


@pytest.mark.parametrize("size", [4, 6, 16])
def test_global_batch_of_another_size_goes_on_with_the_samples_after(
    size: int, prefix: Path, tmp_path: Path
) -> None:
    """Two steps of 8, then five of another size, whatever it divides: what follows, each once."""
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    run_distributed(run, 1, config, 2)
    other = changed(config, "training", global_batch_size=size)
    (read,) = run_distributed(samples_read, 1, other)
    ends = [8, 16, *(16 + size * number for number in range(1, STEPS - 1))]
    assert [record["consumed_samples"] for record in lines(config)] == ends
    longer = changed(config_of(prefix, tmp_path, "whole", "fp32-zero0"), "training", steps=12)
    (whole,) = run_distributed(samples_read, 1, longer)
    assert len(read) == size * (STEPS - 2)
    assert read == whole[16 : 16 + len(read)]


def test_fields_that_the_model_does_not_read_may_change(prefix: Path, tmp_path: Path) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    assert config.model.position == "learned"
    run_distributed(run, 1, config, 2)
    other = changed(config, "model", rotary_base=5e5, relative_buckets=8)
    assert run_distributed(run, 1, other) == [ExitCode.DONE]
    assert [record["step"] for record in lines(config)] == list(range(1, STEPS + 1))


def test_rewound_run_saves_anew_and_resumes_on_its_new_course(prefix: Path, tmp_path: Path) -> None:
    """The newer checkpoints of the course given up are kept aside, and never resumed from."""
    config = config_of(prefix, tmp_path, "run", "fp32-zero0", checkpoint={"every_steps": 2})
    run_distributed(run, 1, config)
    root = config.run_directory / "checkpoints"
    old = load_file(next((root / step_name(STEPS)).glob("weights/*.safetensors")))
    rewound = changed(config, "checkpoint", resume=str(root / step_name(6)), keep_last=1)
    rewound = changed(rewound, "optimizer", learning_rate=2e-3)
    assert run_distributed(run, 1, rewound) == [ExitCode.DONE]
    assert sorted(path.name for path in root.glob("s*_*")) == [
        step_name(STEPS),
        f"superseded_{step_name(STEPS)}",
    ]
    new = load_file(next((root / step_name(STEPS)).glob("weights/*.safetensors")))
    assert any(not bool((tensor == new[name]).all()) for name, tensor in old.items())
    assert (root / "latest").read_text() == step_name(STEPS)


def test_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(
    prefix: Path, tmp_path: Path
) -> None:
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    text = refusal(changed(config, "optimizer", learning_rate=1e30))
    assert "all have losses that are not finite, with a gradient of " in text
    assert "so training has diverged; nothing more is saved" in text
    assert list(config.run_directory.glob("checkpoints/step_*")) == []


def test_unfinished_save_is_ignored_and_overwritten(prefix: Path, tmp_path: Path) -> None:
    """A save cut off before its manifest does not count, and the next run saves anew."""
    config = config_of(prefix, tmp_path, "run", "fp32-zero0")
    run_distributed(run, 1, config)
    folder = config.run_directory / "checkpoints" / step_name(STEPS)
    unfinished = partial_folder(folder.parent, STEPS)
    folder.rename(unfinished)
    (unfinished / "manifest.json").unlink()
    assert run_distributed(run, 1, config) == [ExitCode.DONE]
    assert (folder / "manifest.json").is_file()
    assert not unfinished.exists()
    assert [record["step"] for record in lines(config)] == list(range(1, STEPS + 1))
