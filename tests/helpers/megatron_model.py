"""Makes tiny GPTModels of megatron-core on the CPU, saves them as torch_dist, and their logits.

    python -m tests.helpers.megatron_model FOLDER

Runs as a process of its own: saving starts worker processes, and three functions that want a GPU
are replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 90
PADDED_VOCABULARY = 96
LENGTH = 24

KINDS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 48, "num_layers": 3, "num_attention_heads": 6,
        "num_query_groups": 2, "group_query_attention": True, "ffn_hidden_size": 70,
        "position_embedding_type": "rope", "rotary_base": 5000, "normalization": "RMSNorm",
        "swiglu": True, "add_bias_linear": False, "untie_embeddings_and_output_weights": True,
    },
    "gpt": {
        "hidden_size": 36, "num_layers": 2, "num_attention_heads": 3, "ffn_hidden_size": 50,
        "position_embedding_type": "learned_absolute", "normalization": "LayerNorm",
        "swiglu": False, "add_bias_linear": True, "bias_gelu_fusion": False,
        "untie_embeddings_and_output_weights": False,
    },
    "stretched": {
        "hidden_size": 40, "num_layers": 2, "num_attention_heads": 5, "kv_channels": 16,
        "ffn_hidden_size": 30, "position_embedding_type": "rope", "rotary_percent": 0.5,
        "rotary_seq_len_interpolation_factor": 3, "softmax_scale": 0.4, "qk_layernorm": True,
        "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
        "add_qkv_bias": True, "untie_embeddings_and_output_weights": True,
    },
    "unplaced": {
        "hidden_size": 24, "num_layers": 2, "num_attention_heads": 2, "ffn_hidden_size": 40,
        "position_embedding_type": "none", "normalization": "LayerNorm",
        "layernorm_zero_centered_gamma": True,
        "swiglu": False, "add_bias_linear": True, "bias_gelu_fusion": False,
        "untie_embeddings_and_output_weights": False,
    },
    "experts": {
        "hidden_size": 40, "num_layers": 3, "num_attention_heads": 4,
        "num_query_groups": 2, "group_query_attention": True, "ffn_hidden_size": 56,
        "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True,
        "add_bias_linear": False, "untie_embeddings_and_output_weights": True,
        "num_experts": 4, "moe_ffn_hidden_size": 24, "moe_router_topk": 2,
        "moe_router_dtype": "fp32", "moe_aux_loss_coeff": 0.02, "moe_z_loss_coeff": 0.001,
    },
    "shared": {
        "hidden_size": 32, "num_layers": 4, "num_attention_heads": 4, "ffn_hidden_size": 20,
        "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True,
        "add_bias_linear": False, "untie_embeddings_and_output_weights": False,
        "num_experts": 6, "moe_router_topk": 3, "moe_router_pre_softmax": True,
        "moe_router_dtype": "fp32", "moe_layer_freq": [0, 1, 0, 1],
        "moe_shared_expert_intermediate_size": 28, "moe_shared_expert_gate": True,
    },
}  # fmt: skip


def arguments_of(kind: str) -> argparse.Namespace:
    """What Megatron-LM would store of such a run."""
    return argparse.Namespace(
        **KINDS[kind],
        max_position_embeddings=LENGTH,
        seq_length=LENGTH,
        norm_epsilon=1e-5,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        vocab_size=VOCABULARY,
        padded_vocab_size=PADDED_VOCABULARY,
    )


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(4))


def _without_gpu() -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
    from megatron.core.transformer.moe import moe_utils

    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    CudaRNGStatesTracker.fork = lambda *_, **__: contextlib.nullcontext()
    # A name that stays undefined without Transformer Engine, and is asked whether it is None.
    moe_utils.te_general_gemm = None


def _specification(config: Any) -> Any:
    """The layers by torch's own operators; those with experts may differ from those without."""
    from megatron.core.models.gpt.gpt_layer_specs import (
        get_gpt_decoder_block_spec,
        get_gpt_layer_local_spec,
    )

    if config.num_moe_experts:
        return get_gpt_decoder_block_spec(
            config, use_transformer_engine=False, normalization=config.normalization
        )
    return get_gpt_layer_local_spec(
        normalization=config.normalization, qk_layernorm=config.qk_layernorm
    )


def _model(arguments: argparse.Namespace) -> torch.nn.Module:
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    experts = {name: value for name, value in vars(arguments).items() if name.startswith("moe_")}
    fused = ("bias_activation_fusion", "masked_softmax_fusion", "apply_rope_fusion")
    config = TransformerConfig(
        num_layers=arguments.num_layers,
        hidden_size=arguments.hidden_size,
        num_attention_heads=arguments.num_attention_heads,
        num_query_groups=getattr(arguments, "num_query_groups", None),
        kv_channels=getattr(arguments, "kv_channels", None),
        softmax_scale=getattr(arguments, "softmax_scale", None),
        qk_layernorm=getattr(arguments, "qk_layernorm", False),
        add_qkv_bias=getattr(arguments, "add_qkv_bias", False),
        ffn_hidden_size=arguments.ffn_hidden_size,
        normalization=arguments.normalization,
        layernorm_epsilon=arguments.norm_epsilon,
        gated_linear_unit=arguments.swiglu,
        activation_func=torch.nn.functional.silu if arguments.swiglu else torch.nn.functional.gelu,
        add_bias_linear=arguments.add_bias_linear,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        num_moe_experts=getattr(arguments, "num_experts", None),
        **experts,
        **dict.fromkeys(fused, False),
    )
    return GPTModel(
        config=config,
        transformer_layer_spec=_specification(config),
        vocab_size=arguments.padded_vocab_size,
        max_sequence_length=LENGTH,
        position_embedding_type=arguments.position_embedding_type,
        rotary_base=getattr(arguments, "rotary_base", 10000),
        rotary_percent=getattr(arguments, "rotary_percent", 1.0),
        seq_len_interpolation_factor=getattr(
            arguments, "rotary_seq_len_interpolation_factor", None
        ),
        share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
    )


def save_all(folder: Path) -> None:
    """Write FOLDER/KIND/iter_0000001 and FOLDER/KIND/logits.pt of every kind."""
    from megatron.core import parallel_state

    _without_gpu()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    for kind in KINDS:
        _save(kind, folder / kind)


def _save(kind: str, folder: Path) -> None:
    from megatron.core import dist_checkpointing

    torch.manual_seed(2)
    arguments = arguments_of(kind)
    model = _model(arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        positions_BT = torch.arange(LENGTH).expand(2, LENGTH)
        later_11TT = torch.ones(LENGTH, LENGTH).triu(1).bool()[None, None]
        logits_BTV = model(tokens(), positions_BT, later_11TT)
        if getattr(arguments, "layernorm_zero_centered_gamma", False):
            # Its kernels then add 1 to what is stored; the norms of torch, used here, never do.
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.weight.sub_(1.0)
    place = folder / "iter_0000001"
    place.mkdir(parents=True)
    torch.save(logits_BTV[..., :VOCABULARY], folder / "logits.pt")
    dist_checkpointing.save({**model.sharded_state_dict(), "args": arguments}, str(place))


if __name__ == "__main__":
    save_all(Path(sys.argv[1]))
