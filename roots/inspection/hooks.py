"""What passes through a model during its forward, seen by hooks that are there for a while only.

Each function is a context manager on a native model. It yields a mapping, empty at first, which
every forward inside fills anew; outside of it the model runs as if it had never been watched:

    with residual_stream(network) as stream, attention_weights(network) as weights:
        network(tokens_BT, starts_BT, keys_B)
    stream[0], weights[0]  # x_BTH before block 0, weights_BNTS of its heads

A model on one pipeline stage is watched whole; of tensor-parallel layers a rank sees its own part.

Legend: B rows, T tokens (queries), S keys, H hidden, N heads, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from roots.models.attention.geometry import Geometry
from roots.models.attention.self_attention import SelfAttention
from roots.models.decoder import Stack
from roots.models.mlp import Activation
from roots.models.moe.experts import Experts
from roots.models.moe.layer import MoE
from roots.models.norm import HeadNorm, Norm
from roots.models.pair_blocks import MemoryNorm
from roots.ops import KeyRanges
from roots.ops.attention import Options
from roots.ops.attention import attention_weights as weights_of_heads

# The branches of a block by the names of its modules, in the order in which they are added.
BRANCHES = ("attention", "cross", "mlp")


@contextmanager
def _while_watched(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take all hooks away at the end, whatever happened."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


@contextmanager
def residual_stream(network: Stack) -> Iterator[dict[int, Tensor]]:
    """x_BTH before every block by its index, and behind the last by the number of blocks."""
    seen: dict[int, Tensor] = {}

    def before(index: int) -> Any:
        return lambda module, inputs: seen.__setitem__(index, inputs[0][0].detach())

    def behind(module: nn.Module, inputs: Any, stream: tuple[Tensor, ...]) -> None:
        seen[len(network.layers)] = stream[0].detach()

    handles = [
        layer.register_forward_pre_hook(before(index)) for index, layer in enumerate(network.layers)
    ]
    handles.append(network.layers[-1].register_forward_hook(behind))
    with _while_watched(handles):
        yield seen


@contextmanager
def branch_outputs(network: Stack) -> Iterator[dict[tuple[int, str], Tensor]]:
    """y_BTH, its bias included, of every (block, branch), branches as in BRANCHES.

    Without norms behind them (model.norm_position=pre) they are what the block adds to the stream.
    """
    seen: dict[tuple[int, str], Tensor] = {}

    def behind(key: tuple[int, str]) -> Any:
        return lambda module, inputs, output: seen.__setitem__(key, _with_bias(output).detach())

    with _while_watched(
        getattr(layer, name).register_forward_hook(behind((index, name)))
        for index, layer in enumerate(network.layers)
        for name in BRANCHES
        if hasattr(layer, name)
    ):
        yield seen


def _with_bias(output: tuple[Tensor, Tensor | None]) -> Tensor:
    y_BTH, bias_H = output
    return y_BTH if bias_H is None else y_BTH + bias_H


@contextmanager
def attention_weights(network: Stack, tokens: int | None = None) -> Iterator[dict[int, Tensor]]:
    """weights_BNTS of the self-attention of every block: what its heads weigh values by.

    Computed from queries and keys by the formula of the op's reference (scale, causality, window,
    documents, biases of scores), because no other implementation stores them. float32, or float64.
    tokens: only of so many queries and keys, the first of the row; None: of all
    """
    seen: dict[int, Tensor] = {}

    def behind(index: int) -> Any:
        def see(module: SelfAttention, inputs: Any, options: dict[str, Any], output: Any) -> None:
            seen[index] = _weights(module, inputs[0], options, tokens)

        return see

    with _while_watched(
        layer.attention.register_forward_hook(behind(index), with_kwargs=True)
        for index, layer in enumerate(network.layers)
    ):
        yield seen


@torch.no_grad()
def _weights(
    module: SelfAttention, x_BTH: Tensor, options: dict[str, Any], tokens: int | None
) -> Tensor:
    geometry: Geometry = options["geometry"]
    assert options.get("cache") is None, "queries that follow a cache are not watched"
    assert geometry.context is None, "a sample that ranks share is not watched"
    bias_1NTS = module.bias(geometry, options.get("relative_En"))
    # Causal weights of the first queries need no later keys; those of an encoder need all.
    count = tokens if geometry.causal else None
    some = slice(0, count)
    q_BTND, k_BSKD, _ = module.heads(x_BTH, geometry)
    ranges = geometry.key_ranges
    wanted = Options(
        causal=geometry.causal,
        window=module.window,
        scale=module.scale or 1.0 / math.sqrt(module.head_size),
        key_ranges=None
        if ranges is None
        else KeyRanges(ranges.bounds_BT2[:, some], complete=ranges.complete),
        dropout=None,
        return_lse=False,
    )
    bias_1NTS = None if bias_1NTS is None else bias_1NTS[..., some, some]
    weights_BNTS, _ = weights_of_heads(q_BTND[:, some], k_BSKD[:, some], wanted, bias_1NTS)
    return weights_BNTS[..., :tokens, :tokens]


@contextmanager
def router_logits(network: Stack) -> Iterator[dict[int, Tensor]]:
    """logits_BTE, float32, of the router of every block that has experts."""
    seen: dict[int, Tensor] = {}

    def behind(index: int) -> Any:
        return lambda module, inputs, output: seen.__setitem__(index, output.detach())

    with _while_watched(
        layer.mlp.router.register_forward_hook(behind(index))
        for index, layer in enumerate(network.layers)
        if isinstance(layer.mlp, MoE)
    ):
        yield seen


@contextmanager
def largest_values(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The largest absolute value of every site, a scalar each, over all forwards inside.

    A site is a module by its path and stands for what comes out of it; `PATH input` for what enters
    a norm, which is the residual stream, or the activation inside of experts; `PATH scores` for the
    products of queries and keys where they are stored, which is under a bias of the scores alone.
    In the order in which they are computed. What is not finite counts as infinite.
    """
    seen: dict[str, Tensor] = {}

    def note(site: str, value: Tensor) -> None:
        largest = value.detach().abs().amax().float().nan_to_num(nan=math.inf, posinf=math.inf)
        seen[site] = largest if site not in seen else torch.maximum(seen[site], largest)

    with _while_watched(_watch_sites(network, note)):
        yield seen


def _watch_sites(network: nn.Module, note: Any) -> Iterator[RemovableHandle]:
    def output(site: str) -> Any:
        def see(module: nn.Module, inputs: Any, result: Any) -> None:
            # One matrix may be embedding and head.
            as_head = site == "embedding.tokens" and inputs[0].is_floating_point()
            name, value = "head" if as_head else site, _of_stream(module, result)
            note(name, value)
            for bias in result[1:] if isinstance(result, tuple) else ():
                if bias is not None and bias.dim() == 1 and bias.is_floating_point():
                    note(name, value + bias)

        return see

    def entry(site: str) -> Any:
        def see(module: nn.Module, inputs: Any, options: dict[str, Any]) -> None:
            x = _of_stream(module, inputs[0])
            residual = options.get("residual_BTH")
            note(f"{site} input", x if residual is None else x + residual)

        return see

    def scores(site: str) -> Any:
        def see(module: SelfAttention, inputs: Any, options: dict[str, Any], result: Any) -> None:
            if module.bias(options["geometry"], options.get("relative_En")) is not None:
                note(f"{site} scores", _largest_scores(module, inputs[0], options["geometry"]))

        return see

    for site, module in network.named_modules():
        owner = network.get_submodule(site.rpartition(".")[0])
        inside_experts = isinstance(module, Activation) and isinstance(owner, Experts)
        if inside_experts or (isinstance(module, Norm) and not isinstance(module, HeadNorm)):
            yield module.register_forward_pre_hook(entry(site), with_kwargs=True)
        if isinstance(module, SelfAttention):
            yield module.register_forward_hook(scores(site), with_kwargs=True)
        if isinstance(module, (Experts, MoE)) or next(module.children(), None) is None:
            yield module.register_forward_hook(output(site))


def _of_stream(module: nn.Module, value: Any) -> Tensor:
    """What a module reads or writes of a tuple: the first, or of an encoder-decoder's stream the
    memory."""
    if not isinstance(value, tuple):
        tensor: Tensor = value
        return tensor
    first: Tensor = value[1 if isinstance(module, MemoryNorm) else 0]
    return first


@torch.no_grad()
def _largest_scores(module: SelfAttention, x_BTH: Tensor, geometry: Geometry) -> Tensor:
    """The largest product of a query and a key, before it is scaled, in float32."""
    q_BTND, k_BSKD, _ = module.heads(x_BTH, geometry)
    k_BSND = k_BSKD.repeat_interleave(q_BTND.shape[2] // k_BSKD.shape[2], dim=2)
    heads = (
        (q_BTND[:, :, head].float() @ k_BSND[:, :, head].float().transpose(1, 2)).abs().amax()
        for head in range(q_BTND.shape[2])
    )
    return torch.stack(list(heads)).amax()
