"""The `parallel` section: how the work is cut. The rest of the ranks is data-parallel."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from roots.config.section import Section

Offload = Literal["none", "cpu", "nvme"]


class ParallelConfig(Section):
    """Degrees of parallelism, ZeRO and recompute."""

    tensor: int = Field(1, gt=0, description="tensor-parallel ranks (Shoeybi et al. 2019)")
    pipeline: int = Field(1, gt=0, description="pipeline stages (Narayanan et al. 2019)")
    context: int = Field(1, gt=0, description="ranks that share one sequence")
    context_method: Literal["ulysses", "ring"] = Field(
        "ulysses",
        description="attention over `context`: ulysses exchanges heads for tokens "
        "(arXiv:2309.14509); ring passes keys and values round (arXiv:2310.01889)",
    )
    expert: int = Field(
        1,
        gt=0,
        description="data-parallel ranks that share the experts (Lepikhin 2020)",
    )
    sequence: bool = Field(False, description="norms and dropout on 1/tensor of the sequence")
    zero_stage: int = Field(1, ge=0, le=3, description="ZeRO stage (Rajbhandari et al. 2020)")
    pipeline_schedule: Literal["1f1b", "dualpipev"] = Field(
        "1f1b",
        description="1f1b: one forward, one backward; dualpipev: two stages a rank, in a V",
    )
    pipeline_partition: Literal["parameters", "uniform"] | tuple[int, ...] = Field(
        "parameters",
        description="stages balanced by parameters, or by number of blocks, or the number of "
        "blocks of every stage as [b1, b2, ...]; dualpipev has 2 x pipeline of them",
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="what runs forward again in the backward pass: full: whole blocks; selective: "
        "attention where its scores are stored, so nothing with fused attention",
    )
    recompute_every: int = Field(
        1, gt=0, description="k: in every k-th block, beginning with the first"
    )
    zero_persistence_threshold: int = Field(
        100_000, ge=0, description="ZeRO-3 keeps parameters of fewer elements whole on every rank"
    )
    offload_optimizer: Offload = Field(
        "none", description="optimizer state and step on the host: cpu, or nvme (ZeRO-3); true: cpu"
    )
    offload_parameters: Offload = Field(
        "none", description="parameters on the host (ZeRO-3): cpu or nvme; true: cpu"
    )
    nvme_path: str | None = Field(
        None, description="folder of a local disk that holds what is offloaded to nvme"
    )
    zero_hpz_partition_size: int = Field(
        1,
        gt=0,
        description="ZeRO-3: ranks of a node that also keep the 16-bit weights among them, so that "
        "the backward pass gathers within the node (ZeRO++, Wang et al. 2023); 1: off",
    )
    zero_quantized_weights: bool = Field(
        False, description="ZeRO-3 gathers weights in 8 bits (ZeRO++), on GPUs; changes numbers"
    )
    zero_quantized_gradients: bool = Field(
        False, description="ZeRO-3 reduces gradients in 4 bits (ZeRO++), on GPUs; changes numbers"
    )

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline

    @property
    def num_stages(self) -> int:
        """Contiguous parts that the list of layers is cut into: two a rank with dualpipev."""
        return self.pipeline * (2 if self.pipeline_schedule == "dualpipev" else 1)

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _accept_booleans(cls, value: Any) -> Any:
        """Accept `true` for the host's memory and `false` for none."""
        return {True: "cpu", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("pipeline_partition", mode="before")
    @classmethod
    def _check_partition(cls, value: Any) -> Any:
        """One message for all that is neither a name nor a list of numbers of blocks."""
        if value in ("parameters", "uniform"):
            return value
        if isinstance(value, (list, tuple)) and value and all(type(each) is int for each in value):
            return tuple(value)
        raise PydanticCustomError("partition", "Must be parameters, uniform or [b1, b2, ...]")
