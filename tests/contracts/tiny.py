"""The smallest models and engines that show what DeepSpeed does. Nothing here knows of ROOTS."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.real_accelerator import set_accelerator
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STAGES = (0, 1, 2, 3)
SIZE = 4
# A loss scale that small gradients survive, with one overflow tolerated.
FP16 = {"enabled": True, "loss_scale": 0, "initial_scale_power": 8, "hysteresis": 1}


class AnyDtype(CPU_Accelerator):  # deepspeed has no type hints
    """DeepSpeed's accelerator of the CPU, which admits fp16 and compiles no collectives."""

    def is_fp16_supported(self) -> bool:
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        return list(DTYPES.values())

    def create_op_builder(self, op_name: str) -> Any:
        return None if op_name == "ShareMemCommBuilder" else super().create_op_builder(op_name)


def prepare() -> None:
    """What every process does before it uses DeepSpeed."""
    deepspeed.utils.logging.logger.setLevel(logging.ERROR)
    set_accelerator(AnyDtype())
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


class Line(nn.Module):
    """y = x w, with w = 1 at first; the gradient of its sum over x = ones is one everywhere."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def engine_of(
    stage: int,
    precision: str = "fp32",
    *,
    model: nn.Module | None = None,
    optimizer: Any = torch.optim.SGD,
    settings: dict[str, Any] | None = None,
    groups: list[dict[str, Any]] | None = None,
    mpu: Any = None,
    **config: Any,
) -> Any:
    """deepspeed.initialize over a Line (or `model`) and torch's optimizer, by default SGD at 1.

    `config` is added to the JSON, a dict to the dict that is there. Nothing is clipped unless it
    says so or is told not to: `gradient_clipping=None` leaves the key out. What DeepSpeed has
    printed is `spoken` of the engine.
    """
    model = Line() if model is None else model
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "steps_per_print": 2**31 - 1,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision == "fp16":
        tree["fp16"] = dict(FP16)
    if precision == "bf16":
        tree["bf16"] = {"enabled": True}
    for name, value in config.items():
        if isinstance(value, dict):
            tree[name] = {**tree.get(name, {}), **value}
        elif value is None:
            del tree[name]
        else:
            tree[name] = value
    made = optimizer(groups or list(model.parameters()), **{"lr": 1.0, **(settings or {})})
    with silent() as spoken:
        engine, *_ = deepspeed.initialize(model=model, optimizer=made, config=tree, mpu=mpu)
    engine.spoken = spoken.getvalue()
    return engine


def backward(engine: Any, factor: float | Tensor = 1.0) -> None:
    """Forward over ones and backward; every gradient becomes `factor`."""
    dtype = next(engine.module.parameters()).dtype
    output = engine(torch.ones(1, SIZE, dtype=dtype))
    engine.backward((output.float() * factor).sum())


def step(engine: Any, factor: float | Tensor = 1.0) -> None:
    """One whole step with gradients of `factor`."""
    backward(engine, factor)
    engine.step()


def one_nan() -> Tensor:
    """Factors of which the first is NaN."""
    return torch.tensor([float("nan"), *([1.0] * (SIZE - 1))])


def weights(engine: Any) -> list[float]:
    """The whole first parameter, at every stage."""
    parameter = next(engine.module.parameters())
    sharded = hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
        return parameter.detach().float().flatten().tolist()


def outcome(engine: Any, factor: float | Tensor) -> str:
    """What a step with gradients of `factor` does to the weights: applied or skipped."""
    before = weights(engine)
    step(engine, factor)
    return "skipped" if weights(engine) == before else "applied"


@contextmanager
def silent() -> Iterator[io.StringIO]:
    """Keep what DeepSpeed prints from the screen."""
    with contextlib.redirect_stdout(io.StringIO()) as spoken:
        yield spoken


def raised_by(call: Any, *arguments: Any) -> str:
    """Name of the exception and its first line; empty if there is none."""
    try:
        with silent():
            call(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is asked for
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""
