"""The optimizer's settings: those of the config in force, whatever a checkpoint brings along.

DeepSpeed and torch keep settings beside the state and load both: betas, epsilon and decay of every
group at all stages, and the clipping at ZeRO 1 and 2.
"""

from __future__ import annotations

from typing import Any

import torch

# State of the optimizer, not a setting: apex counts steps in the group.
_STATE = ("params", "step")

Settings = list[dict[str, Any]]


def settings_of(optimizer: Any) -> Settings:
    """What every parameter group of a newly built optimizer is told, in order."""
    return [
        {name: value for name, value in group.items() if name not in _STATE}
        for group in optimizer.param_groups
    ]


def put_in_force(optimizer: Any, settings: Settings, clipping: float) -> None:
    """Give a loaded optimizer the settings that it was built with, and the largest norm."""
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        kept = {name: group[name] for name in _STATE if name in group}
        group.clear()
        group.update({**own, **kept})
    if hasattr(optimizer, "clip_grad"):
        optimizer.clip_grad = clipping


def count_steps_as_built(optimizer: torch.optim.Optimizer) -> None:
    """Turn the counts that another implementation has left in a loaded optimizer into its own.

    torch keeps a tensor a parameter, DeepSpeed's a number a parameter, apex one a group.
    """
    states = [state for state in optimizer.state.values() if "exp_avg" in state]
    if not states:
        return
    count = int(states[0].get("step", optimizer.param_groups[0].get("step", 0)))
    if isinstance(optimizer, torch.optim.AdamW):
        for state in states:
            if not torch.is_tensor(state.get("step")):
                place = state["exp_avg"].device
                state["step"] = torch.tensor(count, dtype=torch.float32, device=place)
        return
    for state in states:
        state["step"] = count
    for group in optimizer.param_groups:
        group["step"] = count
