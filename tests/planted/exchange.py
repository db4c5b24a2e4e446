"""Bugs in models that come from elsewhere or go there."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "keys and values of a group swapped",
        "exchange/megatron/tensor_map.py",
        "bounds = ((0, queries), (queries, queries + 1), (queries + 1, queries + 2))",
        "bounds = ((0, queries), (queries + 1, queries + 2), (queries, queries + 1))",
        "tests/exchange/megatron/test_importing.py -k logits_are",
    ),
    PlantedBug(
        "up before gate",
        "exchange/hf/llama.py",
        '[f"{theirs}.gate_proj", f"{theirs}.up_proj"]',
        '[f"{theirs}.up_proj", f"{theirs}.gate_proj"]',
        "tests/exchange/hf/test_parity.py -k 'llama-head-dim'",
    ),
    PlantedBug(
        "heads of NeoX read as blocks of queries",
        "exchange/hf/gpt_neox.py",
        "(model.num_heads, 3, model.head_size), (1, 0, 2)",
        "(3, model.num_heads, model.head_size), (0, 1, 2)",
        "tests/exchange/hf/test_parity.py -k 'neox-serial'",
    ),
    PlantedBug(
        "borders of llama3 scaling swapped",
        "exchange/hf/rotary_map.py",
        ('("low_freq_factor", "low_frequency"),\n        ("high_freq_factor", "high_frequency"),'),
        ('("low_freq_factor", "high_frequency"),\n        ("high_freq_factor", "low_frequency"),'),
        "tests/exchange/hf/test_parity.py -k 'llama3'",
    ),
    PlantedBug(
        "gate and up of T5 swapped",
        "exchange/hf/t5.py",
        'names = ("wi_0", "wi_1") if model.gated',
        'names = ("wi_1", "wi_0") if model.gated',
        "tests/exchange/hf/test_encoder_parity.py",
    ),
    PlantedBug(
        "rows of GGUF rotated by halves",
        "exchange/gguf/exporting.py",
        'if arch != LLAMA.model_type or short not in ("attn_q", "attn_k"):',
        'if arch != LLAMA.model_type or short not in ("attn_q",):',
        "tests/exchange/gguf/test_exporting.py",
    ),
    PlantedBug(
        "window of Megatron without the token itself",
        "exchange/megatron/arguments.py",
        "window[0] < 0 else window[0] + 1",
        "window[0] < 0 else window[0]",
        "tests/exchange/megatron/test_limits.py -k agrees",
    ),
    PlantedBug(
        "base of the NTK stretch by the wrong power",
        "exchange/hf/rotary_map.py",
        "base *= scaling.factor ** (size / (size - 2))",
        "base *= scaling.factor",
        "tests/exchange/hf/test_rotary_map.py",
    ),
    PlantedBug(
        "epsilon of Megatron's norms is the default",
        "exchange/megatron/arguments.py",
        'return arguments.get("norm_epsilon", arguments.get("layernorm_epsilon", 1e-5))',
        'return arguments.get("norm_epsilon", 1e-5)',
        "tests/exchange/megatron/test_limits.py -k agrees",
    ),
    PlantedBug(
        file="exchange/hf/llama.py",
        name="window of Qwen without being asked for",
        old='tree.get("use_sliding_window", False)',
        new='tree.get("use_sliding_window", True)',
        check="tests/exchange/hf/test_llama.py",
    ),
    PlantedBug(
        file="exchange/hf/qwen_moe.py",
        name="probabilities of Qwen normalised unless told",
        old='bool(tree.get("norm_topk_prob", False))',
        new='bool(tree.get("norm_topk_prob", True))',
        check="tests/exchange/hf/test_qwen_moe.py",
    ),
    PlantedBug(
        file="exchange/hf/t5.py",
        name="T5's head scaled whether tied or not",
        old='tree.get("scale_decoder_outputs", tied)',
        new='tree.get("scale_decoder_outputs", True)',
        check="tests/exchange/hf/test_t5.py",
    ),
]
