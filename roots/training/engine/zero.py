"""Which of ZeRO's options this machine can serve: refused in one line before anything is built.

What an option needs compiled is compiled here, by one rank while the others wait.
"""

from __future__ import annotations

from collections.abc import Iterator

from deepspeed.accelerator import get_accelerator

from roots.config.run import RunConfig
from roots.device import Device
from roots.errors import RootsError, problem
from roots.training.engine.operator_build import build_alone


def refuse_what_is_not_served(config: RunConfig, device: Device) -> None:
    """Raise RootsError with a line for every option of `config.parallel` that cannot run here."""
    lines = [*_without_async_io(config), *_without_quantizer(config, device)]
    if lines:
        raise RootsError(*lines)


def _without_async_io(config: RunConfig) -> Iterator[str]:
    """NVMe is read and written by DeepSpeed's async_io, which is compiled against libaio."""
    names = [
        name
        for name in ("offload_optimizer", "offload_parameters")
        if getattr(config.parallel, name) == "nvme"
    ]
    if not names:
        return
    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if builder is not None and builder.is_compatible(verbose=False):
        # DeepSpeed keeps what is loaded.
        build_alone(lambda: builder.load(verbose=False))
        return
    yield problem(
        f"parallel.{names[0]}",
        "nvme",
        "needs DeepSpeed's async_io, which cannot be built here without libaio",
        "install libaio-dev (Debian) or libaio-devel (Red Hat), or offload to cpu",
    )


def _without_quantizer(config: RunConfig, device: Device) -> Iterator[str]:
    """DeepSpeed's quantizer is written in CUDA alone."""
    if device.kind == "cuda":
        return
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(config.parallel, name):
            yield problem(
                f"parallel.{name}",
                True,
                "needs GPUs, because DeepSpeed's quantizer has no CPU implementation",
                f"set parallel.{name}=false on this machine",
            )
