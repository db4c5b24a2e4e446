"""Rules of ZeRO: stages, offload, hierarchical partitions and quantized communication."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def zero_with_pipeline(config: RunConfig) -> Iterator[str]:
    """DeepSpeed's pipeline engine accumulates whole gradients, which ZeRO 2 and 3 shard."""
    parallel = config.parallel
    if parallel.pipeline > 1 and parallel.zero_stage > 1:
        yield problem(
            "parallel.zero_stage",
            parallel.zero_stage,
            f"must be 0 or 1 with parallel.pipeline={parallel.pipeline}, because the pipeline "
            "keeps whole gradients between micro-batches and ZeRO 2 and 3 shard them",
            "set parallel.zero_stage=1, or parallel.pipeline=1",
        )


def offload_needs_zero(config: RunConfig) -> Iterator[str]:
    """Offload is a feature of ZeRO's sharded state."""
    parallel = config.parallel
    stage = parallel.zero_stage
    if parallel.offload_optimizer != "none" and stage < 1:
        yield problem(
            "parallel.offload_optimizer",
            parallel.offload_optimizer,
            f"needs ZeRO 1 or above, but parallel.zero_stage={stage}",
            "set parallel.zero_stage=1",
        )
    if parallel.offload_parameters != "none" and stage != 3:
        yield problem(
            "parallel.offload_parameters",
            parallel.offload_parameters,
            f"needs ZeRO 3, but parallel.zero_stage={stage}",
            "set parallel.zero_stage=3",
        )


def offload_with_tied_stages(config: RunConfig) -> Iterator[str]:
    """DeepSpeed's offloading bf16 optimizer leaves out the sum of a weight tied over two stages.

    With DualPipeV both ends of the tie are one module of one rank, and there is nothing to sum.
    """
    parallel = config.parallel
    if (
        parallel.offload_optimizer != "none"
        and parallel.pipeline > 1
        and parallel.pipeline_schedule == "1f1b"
        and config.training.precision == "bf16"
        and config.model.tied_embeddings
    ):
        yield problem(
            "parallel.offload_optimizer",
            parallel.offload_optimizer,
            f"cannot run in bf16 with parallel.pipeline={parallel.pipeline} and tied embeddings, "
            "because DeepSpeed then never sums the gradients of the two copies",
            "set model.tied_embeddings=false, training.precision=fp16, or no offload",
        )


def nvme_needs_a_place(config: RunConfig) -> Iterator[str]:
    """DeepSpeed swaps to disk under ZeRO-3 alone, and must be told where."""
    parallel = config.parallel
    uses = [
        name
        for name in ("offload_optimizer", "offload_parameters")
        if getattr(parallel, name) == "nvme"
    ]
    if uses and parallel.nvme_path is None:
        fix = "set it to a folder of a local disk, or offload to cpu"
        rule = f"must be set, because parallel.{uses[0]}=nvme"
        yield problem("parallel.nvme_path", None, rule, fix)
    if parallel.offload_optimizer == "nvme" and parallel.zero_stage in (1, 2):
        yield problem(
            "parallel.offload_optimizer",
            "nvme",
            f"needs ZeRO 3, but parallel.zero_stage={parallel.zero_stage}",
            "set parallel.zero_stage=3, or parallel.offload_optimizer=cpu",
        )
    if parallel.nvme_path is not None and not uses:
        yield problem(
            "parallel.nvme_path",
            parallel.nvme_path,
            "has no effect without offload to nvme",
            "set parallel.offload_optimizer=nvme, or parallel.nvme_path=null",
        )


def zero_plus_plus_needs_zero_3(config: RunConfig) -> Iterator[str]:
    """ZeRO++ changes how ZeRO-3 gathers weights and reduces gradients."""
    parallel = config.parallel
    for name, value, off in (
        ("zero_hpz_partition_size", parallel.zero_hpz_partition_size, 1),
        ("zero_quantized_weights", parallel.zero_quantized_weights, False),
        ("zero_quantized_gradients", parallel.zero_quantized_gradients, False),
    ):
        if value != off and parallel.zero_stage != 3:
            yield problem(
                f"parallel.{name}",
                value,
                f"needs ZeRO 3, but parallel.zero_stage={parallel.zero_stage}",
                f"set parallel.zero_stage=3, or parallel.{name}={str(off).lower()}",
            )


def hpz_needs_neighbours(config: RunConfig) -> Iterator[str]:
    """DeepSpeed takes neighbouring ranks for the second partition, whatever they hold."""
    parallel = config.parallel
    if parallel.zero_hpz_partition_size > 1 and parallel.tensor > 1:
        yield problem(
            "parallel.zero_hpz_partition_size",
            parallel.zero_hpz_partition_size,
            f"cannot stand beside parallel.tensor={parallel.tensor}, because DeepSpeed partitions "
            "among neighbouring ranks, and those hold different tensor shards",
            "set parallel.tensor=1, or parallel.zero_hpz_partition_size=1",
        )


ZERO_RULES = (
    zero_with_pipeline,
    offload_needs_zero,
    offload_with_tied_stages,
    nvme_needs_a_place,
    zero_plus_plus_needs_zero_3,
    hpz_needs_neighbours,
)


def replica_problems(config: RunConfig, replicas: int) -> Iterator[str]:
    """The second partition of ZeRO++ must divide the first, that over context and data."""
    size = config.parallel.zero_hpz_partition_size
    if replicas % size:
        near = max(value for value in range(1, size + 1) if replicas % value == 0)
        yield problem(
            "parallel.zero_hpz_partition_size",
            size,
            f"must divide the {replicas} ranks that hold the same parameters",
            f"set it to {near}, or start a multiple of {size} replicas",
        )
