"""What DeepSpeed builds, saves and loads: hidden steps, settings, names in files, moments."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.utils import safe_get_full_optimizer_state
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from tests.contracts.contract import Place, contract
from tests.contracts.tiny import STAGES, Line, engine_of, raised_by, silent, step, weights

ENGINE = "roots/training/engine/"
STATE_FILES = f"{ENGINE}state_files.py"
KNOWN = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def adam(engine: Any) -> dict[str, Any]:
    """The first parameter group of the optimizer that DeepSpeed shows."""
    return engine.optimizer.param_groups[0]


@contract([False, False, True], relied_on=f"{ENGINE}accelerator.py")
def accelerator_of_the_cpu(place: Place) -> list[bool]:
    """DeepSpeed's CPU accelerator admits fp16 only where the processor computes it: what it says is
    what oneDNN says. It builds shared-memory collectives by the name ShareMemCommBuilder."""
    accelerator = CPU_Accelerator()
    native = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    says = bool(accelerator.is_fp16_supported())
    lists = torch.float16 in accelerator.supported_dtypes()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    return [says != native, lists != native, builder is not None]


@contract(
    {"fp32": [1.0] * 4, "fp16": [0.5, 1.0, 1.0, 1.0], "bf16": [0.5, 1.0, 1.0, 1.0]},
    relied_on=f"{ENGINE}deepspeed_json.py",
)
def initialize_makes_a_step_in_16_bits_at_stage_0(place: Place) -> dict[str, list[float]]:
    """At stage 0 in 16 bits `initialize` makes one step of the optimizer with gradients of zero:
    weights decay once, and Adam's count is one ahead."""
    decay = {"lr": 0.5, "weight_decay": 1.0}
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        found[precision] = []
        for stage in STAGES:
            engine = engine_of(stage, precision, optimizer=torch.optim.AdamW, settings=decay)
            masters = getattr(engine.optimizer, "fp32_groups", None)
            if stage == 0 and precision != "fp32" and masters:
                found[precision].append(float(masters[0][0].flatten()[0]))
            else:
                found[precision].append(weights(engine)[0])
    return found


@contract(
    ["AssertionError", "ZeRORuntimeException"],
    relied_on=f"{ENGINE}deepspeed_json.py",
)
def optimizers_that_need_a_word(place: Place) -> list[str]:
    """ZeRO refuses torch's optimizers without `zero_allow_untested_optimizer`, and an offloading
    one refuses all but its own without `zero_force_ds_cpu_optimizer` false."""
    offload = {"stage": 1, "offload_optimizer": {"device": "cpu"}}
    untested = raised_by(lambda: engine_of(1, zero_allow_untested_optimizer=False))
    forced = raised_by(
        lambda: engine_of(1, zero_force_ds_cpu_optimizer=None, zero_optimization=offload)
    )
    return [untested.partition(":")[0], forced.partition(":")[0]]


@contract(True, relied_on=f"{ENGINE}start.py")
def initialize_imports_muon(place: Place) -> bool:
    """`initialize` imports the Muon optimizer whatever the optimizer, and with it torch.compile."""
    engine_of(0)
    return "deepspeed.runtime.zero.muon.muon_optimizer" in sys.modules


@contract(
    {
        "clipping": ["new", "saved", "saved", "new"],
        "lr": ["saved"] * 4,
        "betas": ["saved"] * 4,
        "weight_decay": ["saved"] * 4,
    },
    relied_on=f"{ENGINE}settings.py",
)
def settings_come_from_the_checkpoint(place: Place) -> dict[str, list[str]]:
    """A load brings back rates, decay and betas at all stages, and the clipping at 1 and 2; the
    new config's are gone without a word."""
    saved = {"lr": 0.5, "betas": (0.5, 0.5), "weight_decay": 0.5}
    new = {"lr": 0.25, "betas": (0.25, 0.25), "weight_decay": 0.25}
    found: dict[str, list[str]] = {name: [] for name in ("clipping", *saved)}
    for stage in STAGES:
        folder = str(place.folder / str(stage))
        first = engine_of(stage, optimizer=torch.optim.AdamW, settings=saved, gradient_clipping=0.5)
        step(first)
        first.save_checkpoint(folder, tag="t")
        second = engine_of(stage, optimizer=torch.optim.AdamW, settings=new, gradient_clipping=0.25)
        second.load_checkpoint(folder, tag="t")
        clipping = getattr(second.optimizer, "clip_grad", second.gradient_clipping())
        found["clipping"].append("saved" if clipping == 0.5 else "new")
        for name, value in saved.items():
            found[name].append("saved" if adam(second)[name] == value else "new")
    return found


@contract([[2.0, 2.0, 2.0], [1.0, "path"]], relied_on="roots/checkpoint/weights.py")
def weights_alone_at_stage_3_are_not_loaded(place: Place) -> list[Any]:
    """`load_checkpoint(load_module_only=True)` gives the weights at stages 0 to 2; at stage 3 it
    returns a path and loads nothing."""
    found: list[Any] = []
    for stage in STAGES:
        folder = str(place.folder / str(stage))
        first = engine_of(stage)
        step(first, -1.0)
        first.save_checkpoint(folder, tag="t")
        second = engine_of(stage)
        path, _ = second.load_checkpoint(folder, tag="t", load_module_only=True)
        found.append(weights(second)[0])
    return [found[:3], [found[3], "path" if path else "nothing"]]


@contract("AssertionError: ", relied_on="roots/training/checkpointing.py")
def loading_nothing_says_nothing(place: Place) -> str:
    """`load_checkpoint` of a tag that is not there is an assertion without a word."""
    return raised_by(engine_of(1).load_checkpoint, str(place.folder), "nowhere")


def unknown_names(folder: Path) -> list[str]:
    """What the pickles below `folder` name besides data of torch and KNOWN."""
    names: set[str] = set()
    for path in folder.rglob("*.pt"):
        names |= set(get_unsafe_globals_in_checkpoint(str(path)))
    return sorted(names - set(KNOWN))


@contract(
    [[], ["load(path, map_location)"], ["BF16_Optimizer", False]],
    relied_on=f"{STATE_FILES} {ENGINE}step.py",
)
def files_name_four_classes(place: Place) -> list[Any]:
    """The pickles of a checkpoint name four of DeepSpeed's classes and no more, at every stage and
    precision; they are read by `engine.checkpoint_engine.load(path, map_location)`. The bf16
    optimizer's does not say its stage."""
    unknown: list[str] = []
    calls: set[str] = set()
    kinds = [("fp32", each) for each in STAGES] + [("fp16", 1), ("fp16", 3), ("bf16", 1)]
    last: list[Any] = []
    for precision, stage in kinds:
        config = {"data_types": {"grad_accum_dtype": "fp32"}} if precision == "bf16" else {}
        engine = engine_of(stage, precision, optimizer=torch.optim.AdamW, **config)
        step(engine)
        folder = place.folder / f"{precision}-{stage}"
        engine.save_checkpoint(str(folder), tag="t")
        unknown += unknown_names(folder)
        reader = engine.checkpoint_engine
        original = reader.load

        def load(path: str, map_location: Any = None, original: Any = original) -> Any:
            calls.add("load(path, map_location)")
            return original(path, map_location=map_location)

        reader.load = load
        engine.load_checkpoint(str(folder), tag="t")
        last = [type(engine.optimizer).__name__, "zero_stage" in engine.optimizer.state_dict()]
    return [sorted(set(unknown)), sorted(calls), last]


class Two(nn.Module):
    """Two parameters, for two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Line(), Line()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


@contract(
    [["0.1", "missing"], ["0.1", "missing"], ["0.1", "0.1"]],
    relied_on=f"{ENGINE}step.py",
)
def moments_of_the_second_group(place: Place) -> list[list[str]]:
    """After the first step ZeRO 1 and 2 know the moments of the first parameter group alone: they
    link them when that was stepped. ZeRO 3 knows all."""
    found = []
    for stage in (1, 2, 3):
        model = Two()
        groups = [{"params": [each.weight]} for each in (model.first, model.second)]
        engine = engine_of(stage, model=model, groups=groups, optimizer=torch.optim.AdamW)
        step(engine)
        here = []
        for each in (model.first, model.second):
            moment = None
            with contextlib.suppress(KeyError, AttributeError, ValueError):
                moment = safe_get_full_optimizer_state(each.weight, "exp_avg")
            here.append("missing" if moment is None else f"{float(moment.flatten()[0]):.1f}")
        found.append(here)
    return found


@contract([True, True, True], relied_on=f"{ENGINE}one_replica.py")
def gradients_may_stay_where_they_are(place: Place) -> list[bool]:
    """ZeRO 1 and 2 put every gradient into buckets by one method,
    `reduce_independent_p_g_buckets_and_remove_grads(parameter, group)`; without it the step takes
    the gradients that backward wrote. Masters may be the weights themselves (fp32)."""
    found = []
    for stage in (1, 2):
        engine = engine_of(stage)
        optimizer = engine.optimizer
        taken: list[Any] = []
        optimizer.reduce_independent_p_g_buckets_and_remove_grads = lambda p, g, t=taken: t.append(
            g
        )
        optimizer.reduce_bucket_size = 1
        for (whole,), master in zip(
            optimizer.parallel_partitioned_bit16_groups,
            optimizer.single_partition_of_fp32_groups,
            strict=True,
        ):
            master.data = whole
        optimizer._link_all_hp_params()
        step(engine, 0.25)
        found.append(weights(engine) == [0.75] * 4 and bool(taken))
    return [*found, not engine.optimizer.cpu_offload]


@contract(
    since={"": [[4, 4], [4], [1.0], "unknown"], "0.19.3": [[4, 4], [4], [1.0], 0]},
    relied_on=f"{ENGINE}optimizer_state.py",
)
def partitions_of_zero_3(place: Place) -> list[Any]:
    """ZeRO 3 keeps a flat fp32 tensor for each of its groups, and each parameter's part with its
    true and its padded length; since 0.19.3 it knows the part's number in the group."""
    optimizer = engine_of(3).optimizer
    (parameters,) = optimizer.fp16_groups
    ((part,),) = optimizer.fp16_partitioned_groups
    (flat,) = optimizer.fp32_partitioned_groups_flat
    lengths = [parameters[0].ds_numel, parameters[0].ds_tensor.ds_numel]
    asked = getattr(optimizer, "_get_sub_group_partition_rank", lambda group: "unknown")
    return [lengths, list(part.shape), flat.unique().tolist(), asked(0)]


@contract([False, True], relied_on=f"{ENGINE}step.py")
def initialize_prints_whatever_the_log_level(place: Place) -> list[bool]:
    """While its bf16 optimizer is made DeepSpeed prints to standard output, whatever its log level;
    ZeRO in fp32 is silent."""
    sums = {"data_types": {"grad_accum_dtype": "fp32"}}
    return [bool(engine_of(1).spoken), bool(engine_of(1, "bf16", **sums).spoken)]


@contract([0.0, 0.0, 0.5], relied_on="roots/training/schedule.py")
def warm_up_begins_with_two_updates_at_the_minimum(place: Place) -> list[float]:
    """DeepSpeed's WarmupLR runs the first two updates at the minimum: the rate of the second is set
    by the count of the first."""
    from deepspeed.runtime.lr_schedules import WarmupLR

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = WarmupLR(optimizer, 0.0, 1.0, warmup_num_steps=2, warmup_type="linear")
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        with silent():
            schedule.step()
    return rates
