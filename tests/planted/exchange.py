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
]
