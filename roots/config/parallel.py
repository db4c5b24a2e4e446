"""The `parallel` section: how the work is cut. The rest of the ranks is data-parallel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roots.config.section import Section


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
    expert: int = Field(1, gt=0, description="ranks that share the experts")
    sequence: bool = Field(False, description="norms and dropout on 1/tensor of the sequence")
    zero_stage: int = Field(1, ge=0, le=3, description="ZeRO stage (Rajbhandari et al. 2020)")
    pipeline_schedule: Literal["1f1b"] = Field("1f1b", description="order of forward and backward")
    pipeline_partition: Literal["parameters", "uniform"] = Field(
        "parameters", description="stages balanced by parameters, or by number of layers"
    )
    recompute: Literal["none", "full"] = Field(
        "none", description="full: blocks run forward again in the backward pass"
    )
    offload_optimizer: bool = Field(False, description="optimizer state and step on the host CPU")
    offload_parameters: bool = Field(False, description="parameters on the host (ZeRO-3)")

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline
