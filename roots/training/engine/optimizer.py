"""Whose AdamW runs: the fastest implementation that really works here, with the reason logged.

An implementation counts as present when constructing it on one element succeeds, because that is
what loads its compiled kernel: the package called `apex` on PyPI is another project, and a
half-built apex or DeepSpeed op imports well and fails later.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from roots.config.run import RunConfig
from roots.device import Device, build_environment
from roots.errors import RootsError, problem
from roots.log import get_logger
from roots.ops.library.toolchain import find_compiler
from roots.parallel.shard import expert_group_name, is_spread_expert
from roots.training.engine.operator_build import build_alone

_logger = get_logger(__name__)

ParameterGroups = list[dict[str, Any]]
Factory = Callable[[ParameterGroups], torch.optim.Optimizer]


@dataclass(frozen=True)
class Candidate:
    """One implementation of AdamW: how to make it, and the sentence that says why it is liked."""

    name: str
    merit: str
    make: Factory


def choose_optimizer(config: RunConfig, device: Device) -> Factory:
    """Return the constructor of the optimizer for `config.optimizer.implementation` on `device`.

    auto takes the first candidate that can be constructed. A named implementation that cannot be
    raises RootsError with the reason. The choice is logged either way.
    """
    wanted = config.optimizer.implementation
    reasons: list[str] = []
    for candidate in _candidates(config, device):
        if wanted not in ("auto", candidate.name):
            continue
        reason = _reason_against(candidate, device)
        if reason is None:
            against = f" ({'; '.join(reasons)})" if reasons else ""
            _logger.info("optimizer: %s, %s%s", candidate.name, candidate.merit, against)
            return candidate.make
        reasons.append(f"{candidate.name}: {reason}")
    raise RootsError(
        problem(
            "optimizer.implementation",
            wanted,
            f"is not usable here ({'; '.join(reasons)})",
            "install or build it, or set optimizer.implementation=auto",
        )
    )


def parameter_groups(
    config: RunConfig, decay: Iterable[torch.nn.Parameter], plain: Iterable[torch.nn.Parameter]
) -> ParameterGroups:
    """Matrices with weight decay, biases and norms without, and in a third group, marked as
    DeepSpeed wants it, the matrices of experts that are spread out. Empty ones are left out."""
    matrices = list(decay)
    experts = [each for each in matrices if is_spread_expert(each)]
    groups: ParameterGroups = [
        {"params": [each for each in matrices if not is_spread_expert(each)]},
        {"params": list(plain), "weight_decay": 0.0},
        {
            "params": experts,
            "moe": True,
            "name": expert_group_name(config.parallel.expert),
        },
    ]
    decays = {"weight_decay": config.optimizer.weight_decay}
    return [{**decays, **group} for group in groups if group["params"]]


def _candidates(config: RunConfig, device: Device) -> list[Candidate]:
    """All implementations for this device, the fastest first."""
    settings = config.optimizer
    shared: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.epsilon,
    }

    def from_torch(groups: ParameterGroups) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, fused=True, **shared)

    def from_apex(groups: ParameterGroups) -> torch.optim.Optimizer:
        return importlib.import_module("apex.optimizers").FusedAdam(
            groups, adam_w_mode=True, **shared
        )

    def from_deepspeed(groups: ParameterGroups) -> torch.optim.Optimizer:
        ops = importlib.import_module("deepspeed.ops.adam")
        if config.parallel.offload_optimizer != "none" or device.kind == "cpu":
            _need_compiler("cpu_adam")
            return build_alone(lambda: ops.DeepSpeedCPUAdam(groups, adamw_mode=True, **shared))
        return build_alone(lambda: ops.FusedAdam(groups, adam_w_mode=True, **shared))

    on_host = config.parallel.offload_optimizer != "none"
    deepspeed_merit = "DeepSpeed's Adam of the host" if on_host else "DeepSpeed's fused Adam"
    in_order = [
        Candidate("deepspeed", deepspeed_merit, from_deepspeed),
        Candidate("torch", "torch's fused AdamW", from_torch),
        Candidate("apex", "apex's FusedAdam, as asked for", from_apex),
    ]
    if device.kind == "cpu" and not on_host:
        # torch's needs no build of minutes at the first start; tests/bench/adam.py has the speeds.
        in_order = [in_order[1], in_order[0], in_order[2]]
    return in_order


def _need_compiler(operator: str) -> None:
    """Raise BuildError where an operator of DeepSpeed would be compiled and nothing compiles.

    torch and DeepSpeed warn of another compiler then, and say that the operator failed to build.
    """
    if not importlib.import_module("deepspeed.git_version_info").installed_ops.get(operator):
        find_compiler(build_environment())


def _reason_against(candidate: Candidate, device: Device) -> str | None:
    """Construct the candidate on one element; return why that failed, None if it did not."""
    probe = torch.nn.Parameter(torch.zeros(1, device=device.torch))
    try:
        candidate.make([{"params": [probe], "weight_decay": 0.0}])
    except Exception as error:  # noqa: BLE001  # foreign code may raise anything; it is reported
        text = str(error).strip().splitlines()
        return f"{type(error).__name__}: {text[0] if text else 'no message'}"
    return None
