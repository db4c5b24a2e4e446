"""A config made small for proofs that train it in seconds: the same features, on the same axes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from roots.config.check import checked_config
from roots.config.rules.batch import batch_rule
from roots.config.run import RunConfig
from roots.errors import RootsError

VERIFY_STEPS = 10
_HEAD_SIZE = 8
_MICRO_BATCH = 2
_VOCABULARY = 61
_LENGTHS = (16, 32, 64, 128, 256)
# Degrees that are halved in turn where a machine has fewer processes than the layout needs.
_DEGREES = ("pipeline", "tensor", "context")


def shrink(config: RunConfig, ranks: int, data: dict[str, Any]) -> RunConfig:
    """`config` with few layers, heads and tokens, in fp32, for `ranks` processes; `data` is read.

    Kept: every choice (norms, activations, positions, tying, dropout, routing, schedule, partition,
    ZeRO, recompute), the ratio of query to key heads, and the degrees, which are halved in turn
    while they need more than `ranks`; experts stay spread out, over two ranks at least, if `ranks`
    are even. Left out: what changes numbers by design (16-bit rounding, quantized communication),
    and pairs of texts, for which corrupted spans stand. Raises RootsError if no small model is
    legal.
    """
    tree = config.model_dump(mode="json")
    _shrink_degrees(tree, ranks)
    _shrink_depth(tree)
    _shrink_run(tree, ranks, data)
    lines: tuple[str, ...] = ()
    for candidate in _models(tree, config):
        try:
            return checked_config(candidate, [batch_rule(ranks)])
        except RootsError as error:
            lines = error.lines
    raise RootsError(*lines)


def one_process(config: RunConfig) -> RunConfig:
    """`config` without any parallelism, ZeRO or recompute: what its layout is compared with."""
    tree = config.model_dump(mode="json")
    tree["parallel"] = {"zero_stage": 0}
    return checked_config(tree)


def reduced_degrees(config: RunConfig, small: RunConfig, ranks: int) -> tuple[str, ...]:
    """One line for every degree that `small` has lower than `config`, and why."""
    before, now = config.parallel, small.parallel
    beside = " with experts spread out" if now.expert > 1 else ""
    lines = [
        f"parallel.{name}={getattr(now, name)} instead of {getattr(before, name)}, "
        f"to fit {ranks} ranks{beside}"
        for name in _DEGREES
        if getattr(now, name) < getattr(before, name)
    ]
    replicas = ranks // now.model_ranks
    for name, kind in (("expert", "dense "), ("zero_hpz_partition_size", "")):
        if getattr(now, name) != getattr(before, name):
            lines.append(
                f"parallel.{name}={getattr(now, name)} instead of {getattr(before, name)}, to "
                f"divide the {replicas} ranks that hold the same {kind}parameters"
            )
    return tuple(lines)


def _model_size(parallel: dict[str, Any]) -> int:
    """Processes that hold one copy of the model."""
    return int(parallel["tensor"] * parallel["pipeline"])


def _replica_size(parallel: dict[str, Any]) -> int:
    """Processes that hold one replica."""
    return _model_size(parallel) * int(parallel["context"])


def _shrink_degrees(tree: dict[str, Any], ranks: int) -> None:
    """Reduce the largest degree in turn until a replica divides `ranks`, at 1 it always does.

    Where experts are spread out and `ranks` are even, they leave two ranks that hold the same dense
    parameters, or more.
    """
    parallel = tree["parallel"]
    spread = 2 if parallel["expert"] > 1 and ranks % 2 == 0 else 1
    while ranks % (_model_size(parallel) * math.lcm(parallel["context"], spread)):
        name = max(_DEGREES, key=lambda name: int(parallel.get(name, 1)))
        parallel[name] = _next_smaller(parallel[name])
        parallel["pipeline_partition"] = "parameters"
    if parallel["tensor"] == 1:
        parallel["sequence"] = False
    if parallel["pipeline"] == 1:
        parallel["pipeline_schedule"] = "1f1b"
        parallel["pipeline_partition"] = "parameters"
    # hpZ and experts cut the ranks that hold the same dense parameters: context x data.
    replicas = ranks // _model_size(parallel)
    for name, least in (("zero_hpz_partition_size", 1), ("expert", spread)):
        parallel[name] = max(math.gcd(replicas, parallel[name]), least)


def _next_smaller(degree: int) -> int:
    """The largest proper divisor."""
    return max(value for value in range(1, degree) if degree % value == 0)


def _shrink_depth(tree: dict[str, Any]) -> None:
    """A block or two a stage; an explicit partition stays uneven, where it is about one stack of
    equal blocks."""
    parallel = tree["parallel"]
    stages = parallel["pipeline"] * (2 if parallel["pipeline_schedule"] == "dualpipev" else 1)
    model, moe = tree["model"], tree["model"]["moe"]
    layers = max(2, stages)
    if moe["num_experts"]:
        # Every stage has a block with experts.
        layers = stages * moe["every"] if stages > 1 else max(2, moe["every"])
        parallel["pipeline_partition"] = "uniform" if stages > 1 else "parameters"
    if model["architecture"] == "encoder_decoder":
        parallel["pipeline_partition"] = "parameters"
    blocks = parallel["pipeline_partition"]
    if not isinstance(blocks, str):
        kept = [1 + (each > min(blocks)) for each in blocks]
        parallel["pipeline_partition"] = kept
        layers = sum(kept)
    model["num_layers"] = layers
    if model["architecture"] == "encoder_decoder":
        model["num_encoder_layers"] = layers
    if moe["num_experts"]:
        # As many for every rank of the axis, and never so few that all are chosen.
        expert = parallel["expert"]
        moe["num_experts"] = -(-(moe["top_k"] + 2) // expert) * expert


def _shrink_run(tree: dict[str, Any], ranks: int, data: dict[str, Any]) -> None:
    """A short fp32 run on `data`; conventions about documents stay.

    Adam divides a gradient by its own size, so that one that is zero but for rounding makes noise;
    epsilon 1e-4 keeps that below the tolerance. torch's AdamW, because others round differently.
    """
    tree["parallel"].update(
        zero_quantized_weights=False,
        zero_quantized_gradients=False,
        zero_persistence_threshold=0,
    )
    replicas = ranks // _replica_size(tree["parallel"])
    tree["training"].update(
        steps=VERIFY_STEPS,
        precision="fp32",
        micro_batch_size=_MICRO_BATCH,
        global_batch_size=_MICRO_BATCH * replicas * max(2, 2 * tree["parallel"]["pipeline"]),
    )
    tree["optimizer"].update(learning_rate=1e-3, epsilon=1e-4, implementation="torch")
    tree["schedule"].update(
        warmup_steps=2, warmup_tokens=None, decay_steps=None, decay_tokens=None,
        min_learning_rate=1e-4,
    )  # fmt: skip
    tree["data"].update(data, tokenizer=None, cache_directory=None, num_workers=0)
    # The default of the architecture, which reads plain documents.
    tree["data"].update(
        objective=None, begin_token=None, mask_token=None, sentinel_token=None, pad_multiple=None,
        group_batches=1,
    )  # fmt: skip
    tree["evaluation"].update(every_steps=0)
    tree["tracking"].update(tensorboard=False, wandb=False)


def _models(tree: dict[str, Any], config: RunConfig) -> Iterator[dict[str, Any]]:
    """Ever wider models: the caller takes the first that is legal in its layout."""
    model, parallel = config.model, tree["parallel"]
    group = model.num_heads // model.kv_heads
    unit = parallel["tensor"] * parallel.get("context", 1)
    rotary = max(_HEAD_SIZE, -(-2 // max(model.rotary_fraction, 1e-3)))
    head_size = int(-(-rotary // 2) * 2)
    for kv_heads in dict.fromkeys((min(2, model.kv_heads), unit, 2 * unit, model.kv_heads)):
        for length in _LENGTHS:
            candidate = copy.deepcopy(tree)
            hidden = kv_heads * group * head_size
            small = candidate["model"]
            small.update(
                hidden_size=hidden,
                num_heads=kv_heads * group,
                num_kv_heads=kv_heads,
                ffn_hidden_size=_scaled_ffn(config, hidden, parallel["tensor"]),
                vocab_size=_VOCABULARY,
                vocab_multiple=8 * parallel["tensor"],
                sequence_length=length,
            )
            _shrink_experts(small, config, parallel["tensor"])
            if small["source_length"] is not None:
                small["source_length"] = length
            if small.get("head_dim") is not None:
                small["head_dim"] = head_size
            if small.get("window") is not None:
                small["window"] = length // 2
            yield candidate


def _shrink_experts(small: dict[str, Any], config: RunConfig, tensor: int) -> None:
    """Give experts widths of their own only where the large model's have them."""
    for name, large in (
        ("ffn_hidden_size", config.model.expert_ffn_size),
        ("shared_ffn_hidden_size", config.model.shared_expert_ffn_size),
    ):
        if small["moe"][name] is not None:
            share = large / config.model.ffn_size
            width = round(share * small["ffn_hidden_size"] / tensor)
            small["moe"][name] = max(1, width) * tensor


def _scaled_ffn(config: RunConfig, hidden: int, tensor: int) -> int:
    """The MLP's width in the proportion of the large model, divisible by the tensor axis."""
    share = config.model.ffn_size / config.model.hidden_size
    return max(1, round(share * hidden / (4 * tensor))) * 4 * tensor
