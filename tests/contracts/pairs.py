"""What it takes two ranks to see: tensor parallelism, experts, the pipeline, Gloo."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.runtime.pipe.module import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.utils import groups as deepspeed_groups
from torch import Tensor, nn

from tests.contracts.contract import Place, contract
from tests.contracts.tiny import SIZE, Line, engine_of, raised_by, silent, step

MPU = "roots/parallel/mpu.py"
PIPELINE = "roots/parallel/pipeline.py"
JSON = "roots/training/engine/deepspeed_json.py"
DUALPIPEV = "deepspeed.runtime.pipe.dualpipev"
# What ROOTS' adapter answers to.
ANSWERED = {
    f"get_{axis}_parallel_{what}"
    for axis in ("model", "data", "tensor_model", "slice", "pipeline_model", "pipe")
    for what in ("rank", "world_size", "group")
} | {"get_data_parallel_group_ranks", "get_tensor_model_parallel_src_rank", "get_global_rank"}


class TensorMpu:
    """Two tensor ranks, one replica; notes what it is asked for and knows only ANSWERED."""

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self.alone = [dist.new_group([rank]) for rank in range(2)][dist.get_rank()]

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        if name not in ANSWERED:
            raise AttributeError(name)
        both = name.startswith(("get_model", "get_tensor", "get_slice"))
        rank = dist.get_rank()
        if name.endswith("group_ranks"):
            return lambda: [rank]
        if name.endswith("group"):
            return lambda: dist.group.WORLD if both else self.alone
        if name.endswith("size"):
            return lambda: 2 if both else 1
        return lambda: rank if both and not name.endswith("src_rank") else 0


def norm_of(stage: int, precision: str, *, sharded: bool) -> float:
    """The norm of gradients of 2 of four elements on each of two tensor ranks."""
    model = Line()
    if sharded:
        model.weight.model_parallel = model.weight.tensor_model_parallel = True
    engine = engine_of(stage, precision, model=model, mpu=TensorMpu())
    step(engine, 2.0)
    return round(float(engine.get_global_grad_norm()), 2)


@contract([4.0, 5.66, 5.66, 5.66], ranks=2, relied_on=JSON)
def norm_of_shards_in_fp16(place: Place) -> list[float]:
    """In fp16 without ZeRO the gradient norm is that of one tensor rank's shards; ZeRO 1 to 3 add
    those of all (sqrt of 2 x 16)."""
    return [norm_of(stage, "fp16", sharded=True) for stage in range(4)]


@contract([4.0, 4.0, 4.0], ranks=2, relied_on="roots/parallel/shard.py")
def norm_without_flags(place: Place) -> list[float]:
    """A parameter without `model_parallel` and `tensor_model_parallel` counts once, on the first
    tensor rank, at ZeRO 1 to 3."""
    return [norm_of(stage, "fp32", sharded=False) for stage in (1, 2, 3)]


@contract([], ranks=2, relied_on=MPU)
def names_asked_of_an_mpu(place: Place) -> list[str]:
    """DeepSpeed asks an mpu for the names that ROOTS' adapter has, and, taking a no, for those of
    sequence parallelism."""
    asked: set[str] = set()
    for stage in range(4):
        mpu = TensorMpu()
        engine = engine_of(stage, mpu=mpu)
        step(engine)
        engine.save_checkpoint(str(place.folder / str(stage)), tag="t")
        asked |= mpu.asked
    return sorted(name for name in asked - ANSWERED if "sequence" not in name and name[0] != "_")


class Marker(MoE):
    """What makes DeepSpeed look for parameters of experts."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_experts = 2

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """There is nothing to set."""


class Mixture(nn.Module):
    """A dense parameter and one of an expert that this rank alone holds."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.dense, self.expert, self.marker = Line(), Line(), Marker()
        self.expert.weight.allreduce, self.expert.weight.group_name = False, name

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.expert(x)


@contract(
    [{"dense": [1.5, 1.5], "expert": [0.5, 1.0]}] * 2,
    ranks=2,
    relied_on="roots/training/engine/experts.py roots/parallel/shard.py",
)
def experts_are_averaged_over_all_replicas(place: Place) -> list[dict[str, list[float]]]:
    """The gradient of a parameter with `allreduce` False is summed over the group of its name
    alone, here over no other rank, and divided by the whole data-parallel size, 2; any other is
    averaged over all ranks. Of 1 on one rank and 2 on the other, at stages 0 and 1."""
    name, rank = "ep_size_2", dist.get_rank()
    # What an engine before was given stays for the process.
    deepspeed_groups.mpu = None
    alone = [dist.new_group([each]) for each in range(2)][rank]
    deepspeed_groups._EXPERT_PARALLEL_GROUP[name] = dist.group.WORLD
    deepspeed_groups._EXPERT_PARALLEL_GROUP_RANKS[name] = [0, 1]
    deepspeed_groups._EXPERT_DATA_PARALLEL_GROUP[name] = alone
    deepspeed_groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = [rank]
    deepspeed_groups.expert_tensor_parallel_world_size = 1
    found = []
    for stage in (0, 1):
        model = Mixture(name)
        parts: list[dict[str, Any]] = [
            {"params": [model.dense.weight]},
            {"params": [model.expert.weight], "moe": True, "name": name},
        ]
        step(engine_of(stage, model=model, groups=parts), float(rank + 1))
        held = {"dense": model.dense, "expert": model.expert}
        found.append({key: of_both(1.0 - line.weight) for key, line in held.items()})
    return found


def of_both(tensor: Tensor) -> list[float]:
    """The first element of a tensor on each rank."""
    mine = tensor.detach().float()[:1].clone()
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    return [float(each) for each in both]


class Scale(nn.Module):
    """x times a weight, as a layer of a pipeline, with a bias that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(SIZE))
        self.bias = nn.Parameter(torch.zeros(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def summed(output: Tensor, labels: Tensor) -> Tensor:
    """The loss of a pipeline: each element by the factor that its label is."""
    return (output.float() * labels).sum()


class Cut(PipelineModule):
    """Two stages of one layer each, by a method of its own."""

    def _partition_layers(self, method: Any = "uniform") -> None:
        self.told = method
        self.parts = [0, 1, 2]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def pipeline_of(specs: list[Any], kind: Any = Cut, pipe: int = 2, tensor: int = 1) -> Any:
    """A pipeline of `specs` over the two ranks."""
    topology = PipeModelDataParallelTopology(num_pp=pipe, num_mp=tensor, num_dp=1)
    with silent():
        return kind(
            layers=specs,
            topology=topology,
            loss_fn=summed,
            partition_method=(1, 1) if kind is Cut else "uniform",
            activation_checkpoint_interval=0,
        )


def moved(precision: str, **config: Any) -> float:
    """How far the first stage's weight goes in a step of two micro-batches with gradients of 1."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    stage = pipeline_of([LayerSpec(Scale), LayerSpec(Scale)])
    engine = engine_of(
        1, precision, model=stage, gradient_accumulation_steps=2, settings={"lr": 0.25}, **config
    )
    batch = (torch.ones(1, SIZE, dtype=dtype), torch.ones(1, SIZE))
    with silent():
        engine.train_batch(iter([batch, batch]))
    return of_both(1.0 - next(stage.parameters()))[0]


@contract(["AssertionError", ""], ranks=2, relied_on="roots/config/rules/zero.py")
def pipeline_refuses_zero_2(place: Place) -> list[str]:
    """The pipeline engine takes ZeRO 1, and refuses ZeRO 2 by an assertion."""
    raised = []
    for stage in (2, 1):
        model = pipeline_of([LayerSpec(Scale), LayerSpec(Scale)])
        raised.append(raised_by(lambda s=stage, m=model: engine_of(s, model=m)).partition(":")[0])
    return raised


@contract([[1, 1], [0, 1], True], ranks=2, relied_on=PIPELINE)
def layers_are_cut_by_an_overridden_method(place: Place) -> list[Any]:
    """PipelineModule asks `_partition_layers(method=partition_method)` for `parts` and its bounds,
    and builds the layers within them."""
    stage = pipeline_of([LayerSpec(Scale), LayerSpec(Scale)])
    bounds = [stage._local_start, stage._local_stop]
    return [list(stage.told), bounds, len(list(stage.parameters())) == 2]


@contract({"weight": [False, True], "bias": [False, True]}, ranks=2, relied_on=PIPELINE)
def all_of_a_tied_module_counts_as_a_copy(place: Place) -> dict[str, list[bool]]:
    """On the second stage of a tied layer every parameter is marked `ds_pipe_replicated`, the bias
    too, which is not tied: `tied_weight_attr` is the weight alone."""
    tied = [
        TiedLayerSpec("key", Scale, tied_weight_attr=["weight"]),
        TiedLayerSpec("key", Scale, tied_weight_attr=["weight"]),
    ]
    stage = pipeline_of(tied)
    (module,) = stage.tied_modules.values()
    mine = {name: bool(each.ds_pipe_replicated) for name, each in module.named_parameters()}
    both: list[Any] = [None, None]
    dist.all_gather_object(both, mine)
    return {name: [each[name] for each in both] for name in mine}


@contract(
    since={
        "": {"fp32": 0.125, "bf16": 0.125, "bf16 in the end": 0.125},
        "0.19.3": {"fp32": 0.25, "bf16": 0.25, "bf16 in the end": 0.25},
    },
    ranks=2,
    relied_on=JSON,
)
def sums_of_bf16_in_a_pipeline(place: Place) -> dict[str, float]:
    """What a pipeline's first stage moves by in a step at 0.25 over two micro-batches with
    gradients of 1: in fp32, and in bf16 with fp32 sums that are updated at once
    (`immediate_grad_update`) or in the end. Until 0.19.3 the gradients of all stages but the last
    were divided twice by the number of micro-batches."""
    sums = {"data_types": {"grad_accum_dtype": "fp32"}}
    return {
        "fp32": moved("fp32"),
        "bf16": moved("bf16", bf16={"immediate_grad_update": True}, **sums),
        "bf16 in the end": moved("bf16", bf16={"immediate_grad_update": False}, **sums),
    }


@contract(
    since={"": "absent", "0.19.8": "AssertionError: DualPipeV does not support pipe_partitioned"},
    ranks=2,
    relied_on=f"{PIPELINE} {JSON}",
)
def dualpipev_and_partitioned_activations(place: Place) -> str:
    """DualPipeV is there since 0.19.8. Under tensor parallelism it refuses DeepSpeed's default of
    partitioned activations."""
    if importlib.util.find_spec(DUALPIPEV) is None:
        return "absent"
    kind = importlib.import_module(DUALPIPEV).DualPipeVModule
    stage = pipeline_of([LayerSpec(Scale), LayerSpec(Scale)], kind, pipe=1, tensor=2)
    raised = raised_by(lambda: engine_of(1, model=stage, gradient_accumulation_steps=2))
    return raised.partition(" or ")[0]


@contract(
    ["inf", 40000.0, "RuntimeError"], of="torch", ranks=2, relied_on="roots/parallel/process.py"
)
def gloo_averages_by_a_sum(place: Place) -> list[Any]:
    """Gloo's AVG is the sum, then divided: two fp16 numbers of 40,000 are infinite. A sum of
    integers cannot be averaged."""
    half = torch.full((1,), 40000.0, dtype=torch.float16)
    dist.all_reduce(half, op=dist.ReduceOp.AVG)
    apart = torch.full((1,), 40000.0)
    dist.all_reduce(apart)
    raised = raised_by(lambda: dist.all_reduce(torch.ones(1, dtype=torch.int64), dist.ReduceOp.AVG))
    return [str(float(half)), float(apart) / 2, raised.partition(":")[0]]


@contract([2, 1], of="torch", ranks=2, relied_on=MPU)
def no_group_is_the_world(place: Place) -> list[int]:
    """torch.distributed reads None for a group as all ranks."""
    alone = [dist.new_group([each]) for each in range(2)][dist.get_rank()]
    return [dist.get_world_size(None), dist.get_world_size(alone)]
