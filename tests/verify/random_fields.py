"""Values of fields for random configs: each field is off its default in a third of them or so."""

from __future__ import annotations

import random
from typing import Any

# What a field is drawn from where it is drawn at all; the rules refuse what does not go together.
MODEL: dict[str, tuple[Any, ...]] = {
    "num_layers": (2, 3, 6),
    "num_kv_heads": (1, 2),
    "head_dim": (24, 96),
    "ffn_hidden_size": (192, 640),
    "position": ("rotary", "rotary", "sinusoidal", "alibi", "relative", "none"),
    "relative_buckets": (8, 16),
    "rotary_base": (500.0, 1e6),
    "rotary_fraction": (0.25, 0.5),
    "window": (16, 64),
    "parallel_residual": (True,),
    "qk_norm": (True,),
    "norm": ("rms_norm",),
    "norm_position": ("post",),
    "norm_epsilon": (1e-6, 1e-3),
    "norm_zero_centred": (True,),
    "activation": ("gelu_tanh", "relu", "swiglu", "geglu", "geglu_tanh"),
    "bias": (False,),
    "qkv_bias": (True, False),
    "tied_embeddings": (False,),
    "embedding_scale": (4.0, 16.0),
    "embedding_norm": (True,),
    "token_types": (2,),
    "head_transform": (True,),
    "head_bias": (True,),
    "head_scale": (0.5,),
    "attention_scale": (0.05, 1.0),
    "dropout": (0.1, 0.3),
    "attention_dropout": (0.1,),
    "init_std": (0.006, 0.1),
}
EXPERTS: dict[str, tuple[Any, ...]] = {
    "top_k": (1, 3),
    "ffn_hidden_size": (128, 320),
    "num_shared_experts": (1, 2),
    "shared_ffn_hidden_size": (128,),
    "shared_expert_gate": (True,),
    "capacity_factor": (0.75, 1.25),
    "balance_loss": (0.0, 0.1, 1.0),
    "z_loss": (1e-3, 0.1),
    "normalise_weights": (True, False),
    "every": (2,),
}
STRETCHES: tuple[dict[str, Any], ...] = (
    {"kind": "linear", "factor": 2.0},
    {"kind": "ntk", "factor": 4.0},
    {"kind": "yarn", "factor": 4.0, "original_length": 64},
    {"kind": "llama3", "factor": 8.0, "original_length": 64},
)
OTHERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "training": {
        "seed": (0, 7, 99),
        "gradient_clipping": (0.0, 0.1),
        "label_smoothing": (0.1, 0.3),
        "z_loss": (1e-4, 1e-2),
    },
    "optimizer": {
        "weight_decay": (0.0, 0.01, 0.5),
        "beta1": (0.0, 0.5, 0.95, 0.99),
        "beta2": (0.5, 0.99, 0.999),
    },
    "schedule": {"name": ("linear", "constant", "inverse_sqrt", "wsd")},
    "data": {
        "separate_documents": (False,),
        "reset_positions": (True,),
        "mask_document_end": (True,),
        "noise_density": (0.3, 0.5),
        "mean_span": (1.0, 5.0),
        "num_workers": (1,),
    },
    "ops": {
        "attention": ("reference", "torch_sdpa"),
        "layer_norm": ("reference", "torch"),
        "rms_norm": ("reference", "torch"),
        "rotary": ("reference", "torch"),
        "bias_gelu": ("reference", "torch"),
        "swiglu": ("reference", "torch"),
        "dropout": ("reference",),
        "cross_entropy": ("reference", "torch"),
    },
}
LAYOUT: dict[str, tuple[Any, ...]] = {
    "tensor": (1, 1, 2, 2, 4),
    "sequence": (False, True),
    "context": (1, 1, 1, 2),
    "context_method": ("ulysses", "ring"),
    "pipeline": (1, 1, 2, 4),
    "pipeline_schedule": ("1f1b", "1f1b", "dualpipev"),
    "pipeline_partition": ("parameters", "uniform"),
    "zero_stage": (0, 1, 2, 3),
    "recompute": ("none", "none", "full", "selective"),
    "recompute_every": (1, 1, 2),
    "zero_hpz_partition_size": (1, 1, 1, 2),
    "offload_optimizer": ("none", "none", "none", "cpu"),
}
# Of what is drawn from LAYOUT, what makes no difference beside other values is left out.
_NEEDS = {"sequence": "tensor", "context_method": "context", "pipeline_schedule": "pipeline"}


def draw(generator: random.Random) -> dict[str, Any]:
    """A config that may or may not be legal."""
    architecture = generator.choice(("decoder", "decoder", "decoder", "encoder_decoder", "encoder"))
    model = {"architecture": architecture, **_some(generator, MODEL)}
    if model.get("position") == "rotary" and generator.random() < 0.4:
        model["rotary_scaling"] = generator.choice(STRETCHES)
    experts = architecture == "decoder" and generator.random() < 0.45
    if experts:
        model["moe"] = {"num_experts": 8, **_some(generator, EXPERTS)}
    sections = {name: _some(generator, fields) for name, fields in OTHERS.items()}
    parallel = _layout(generator)
    if experts:
        parallel["expert"] = generator.choice((1, 2, 2, 4))
    return {"model": model, "parallel": parallel, **sections}


def _some(generator: random.Random, fields: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    share = generator.choice((0.1, 0.25, 0.4))
    return {
        name: generator.choice(values)
        for name, values in fields.items()
        if generator.random() < share
    }


def _layout(generator: random.Random) -> dict[str, Any]:
    drawn = {name: generator.choice(values) for name, values in LAYOUT.items()}
    for name, needed in _NEEDS.items():
        if drawn[needed] == 1:
            del drawn[name]
    if drawn["recompute"] == "none":
        del drawn["recompute_every"]
    return drawn
