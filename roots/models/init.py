"""Initial values, as a function of (seed, name, global index) and never of the layout.

Scheme of GPT-2 and Megatron-LM: matrices and tables normal with model.init_std; the matrices that
write into the residual stream (attention.output, cross.output, mlp.down) with init_std / sqrt(their
number), so that the stream does not grow with depth, unless norms stand behind the sums and hold
it; norm weights 1, or 0 where zero-centred; biases 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from roots.config.model import ModelConfig
from roots.parallel.shard import Shard, shard_of
from roots.seeding import derive_key, normal

# The last: of an MLP, and of every expert.
_RESIDUAL_WRITERS = (".attention.output.weight", ".cross.output.weight", ".down.weight")
# Random numbers take about 15 temporaries of 8 bytes an element; a block of them stays in cache.
_BLOCK_ELEMENTS = 1 << 16


def initialise(
    module: nn.Module, seed: int, model: ModelConfig, *, device: torch.device | str = "cpu"
) -> None:
    """Give every parameter of `module` its initial value; those on meta get memory on `device`.

    Equal on every layout; a tied copy gets the values of what it is tied to. Needs the Shard record
    of every parameter and raises RootsError naming one without.
    """
    materialise(module, device)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _fill(parameter, shard_of(parameter, name), seed, model)


def materialise(module: nn.Module, device: torch.device | str) -> None:
    """Replace every meta parameter by uninitialised memory on `device`, keeping its attributes."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = _with_memory(parameter, device)
            owner._parameters[name] = made[id(parameter)]


def weight_decay_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(with decay, without): matrices and tables decay, biases and norms do not."""
    decay = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    plain = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    return decay, plain


def standard_deviation(name: str, model: ModelConfig) -> float:
    """Of the initial values of the matrix called `name`."""
    if not name.endswith(_RESIDUAL_WRITERS) or model.norm_position == "post":
        return model.init_std
    if name.startswith("encoder."):
        return model.init_std / math.sqrt(2 * model.encoder_layers)
    branches = 3 if model.architecture == "encoder_decoder" else 2
    return model.init_std / math.sqrt(branches * model.num_layers)


def _with_memory(parameter: nn.Parameter, device: torch.device | str) -> nn.Parameter:
    data = torch.empty_like(parameter, device=device)
    copy = nn.Parameter(data, requires_grad=parameter.requires_grad)
    # The Shard record and DeepSpeed's flags are plain attributes.
    copy.__dict__.update(parameter.__dict__)
    return copy


def _fill(parameter: Tensor, shard: Shard, seed: int, model: ModelConfig) -> None:
    name = shard.tied_to or shard.name
    if len(shard.shape) == 2:
        std = standard_deviation(name, model)
        _fill_normal(parameter, shard, derive_key(seed, name), std)
    else:
        assert name.endswith((".weight", ".bias")), f"{name}: neither a weight nor a bias"
        scales = name.endswith(".weight") and not model.norm_zero_centred
        parameter.fill_(1.0 if scales else 0.0)


def _fill_normal(parameter: Tensor, shard: Shard, key: int, std: float) -> None:
    """Element (row, column) of the global matrix gets number row * columns + column of `key`."""
    rows, columns = (_global_indices(shard, dim, parameter.device) for dim in (0, 1))
    step = max(1, _BLOCK_ELEMENTS // len(columns))
    for start in range(0, len(rows), step):
        index = rows[start : start + step, None] * shard.shape[1] + columns
        parameter[start : start + step] = normal(key, index) * std


def _global_indices(shard: Shard, dim: int, device: torch.device) -> Tensor:
    """Global indices along `dim` of what this rank holds, in local order."""
    intervals = shard.intervals if dim == shard.dim else ((0, shard.shape[dim]),)
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in intervals])
