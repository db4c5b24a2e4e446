"""A config made small for proofs that train it in seconds: the same features, on the same axes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from roots.config.check import checked_config
from roots.config.rules.batch import batch_rule
from roots.config.run import RunConfig
from roots.errors import RootsError

Precision = Literal["fp32", "bf16", "fp16"]

VERIFY_STEPS = 10
_HEAD_SIZE = 8
_MICRO_BATCH = 2
VOCABULARY = 61
_LENGTHS = (16, 32, 64, 128, 256)
# The degrees of a layout that a proof makes smaller where it has fewer processes than they need.
_DEGREES = ("tensor", "pipeline", "context", "expert", "zero_hpz_partition_size")
# What a layout can have at work, the most wanted first; see `at_work`.
_WISHES = ("tensor", "pipeline", "context", "expert", "data", "copies", "zero_hpz_partition_size")


def shrink(
    config: RunConfig, ranks: int, data: dict[str, Any], precision: Precision = "fp32"
) -> RunConfig:
    """`config` with few layers, heads and tokens, for `ranks` processes; `data` is read.

    Kept: every choice (norms, activations, positions, tying, dropout, routing, schedule, partition,
    ZeRO, recompute), the ratio of query to key heads, and the degrees as far as `ranks` hold them
    (see `fitting_degrees`). Left out: what changes numbers by design (rounding to fewer bits than
    `precision` has, quantized communication), and pairs of texts, for which corrupted spans stand.
    Raises RootsError if no small model is legal.
    """
    tree = config.model_dump(mode="json")
    _shrink_degrees(tree, config, ranks)
    _shrink_depth(tree)
    _shrink_run(tree, ranks, data)
    _shrink_precision(tree, precision)
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


def in_fp32(config: RunConfig) -> RunConfig:
    """`config` computing in fp32."""
    training = config.training.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"training": training})


def default_ranks(config: RunConfig, most: int) -> int:
    """Processes to start where nobody says: the fewest that have all of the layout at work.

    Where more than `most` are needed, the fewest that have the most of it.
    """
    return max(range(1, most + 1), key=lambda ranks: (*_worth(config, ranks), -ranks))


def fitting_degrees(config: RunConfig, ranks: int) -> dict[str, int]:
    """The degrees on `ranks` processes that have the most of the layout at work.

    Of several such the largest, which are the config's own if they fit.
    """

    def worth(degrees: dict[str, int]) -> tuple[object, ...]:
        found = at_work(degrees, ranks)
        return len(found), [wish in found for wish in _WISHES], list(degrees.values())

    own = [_smaller(getattr(config.parallel, name), ranks) for name in _DEGREES]
    candidates = (dict(zip(_DEGREES, values, strict=True)) for values in product(*own))
    return max((each for each in candidates if _fit(each, ranks)), key=worth)


def at_work(degrees: Mapping[str, int], ranks: int) -> frozenset[str]:
    """What a layout of such degrees has at work: axes of two ranks and more, and besides

    data:   two ranks that hold the same parameters and have samples of their own
    copies: two ranks that hold the same ones of experts that are spread out
    zero_hpz_partition_size: a second partition that is smaller than the first
    """
    replicas = ranks // (degrees["tensor"] * degrees["pipeline"])
    sizes = {name: degrees[name] for name in ("tensor", "pipeline", "context", "expert")}
    sizes["data"] = replicas // degrees["context"]
    sizes["copies"] = replicas // degrees["expert"] if degrees["expert"] > 1 else 1
    second = degrees["zero_hpz_partition_size"]
    sizes["zero_hpz_partition_size"] = 2 if 1 < second < replicas else 1
    return frozenset(name for name, size in sizes.items() if size > 1)


def reduced_degrees(config: RunConfig, small: RunConfig, ranks: int) -> tuple[str, ...]:
    """One line for every degree that `small` has lower than `config`."""
    before, now = config.parallel, small.parallel
    return tuple(
        f"parallel.{name}={getattr(now, name)} instead of {getattr(before, name)}, "
        f"to fit {ranks} {'rank' if ranks == 1 else 'ranks'}"
        for name in _DEGREES
        if getattr(now, name) < getattr(before, name)
    )


def not_at_work(config: RunConfig, small: RunConfig, ranks: int) -> tuple[str, ...]:
    """One line for everything that is not at work in `small` and would be on more ranks."""
    found = at_work({name: getattr(small.parallel, name) for name in _DEGREES}, ranks)
    missing = [wish for wish in _WISHES if wish in _wishes(config) and wish not in found]
    if not missing:
        return ()
    # A layout of two in everything fits so many.
    enough = default_ranks(config, 2 ** (len(_WISHES) - 1))
    return tuple(f"{_MISSING[wish]}; --ranks {enough} has them" for wish in missing)


_MISSING = {
    "tensor": "tensors that are cut",
    "pipeline": "layers cut into stages",
    "context": "sequences that are cut",
    "expert": "experts that are spread out",
    "data": "ranks that hold the same parameters and have samples of their own",
    "copies": "ranks that hold the same ones of the experts that are spread out",
    "zero_hpz_partition_size": "second partitions of ZeRO that are smaller than the first",
}


def _wishes(config: RunConfig) -> frozenset[str]:
    """What the layout of `config` has at work on as many ranks as it likes."""
    parallel = config.parallel
    wishes = {name for name in _DEGREES if getattr(parallel, name) > 1} | {"data"}
    return frozenset(wishes | ({"copies"} if parallel.expert > 1 else set()))


def _worth(config: RunConfig, ranks: int) -> tuple[int, list[bool]]:
    """How much is at work on `ranks`, to be compared."""
    found = at_work(fitting_degrees(config, ranks), ranks) & _wishes(config)
    return len(found), [wish in found for wish in _WISHES]


def _smaller(degree: int, ranks: int) -> list[int]:
    """What may stand for a degree: its divisors, and 2 for any, if `ranks` are as many."""
    return [each for each in range(1, min(degree, ranks) + 1) if degree % each == 0 or each == 2]


def _fit(degrees: Mapping[str, int], ranks: int) -> bool:
    """Whether `ranks` are a whole number of replicas, over which experts and ZeRO are spread."""
    replicas, rest = divmod(ranks, degrees["tensor"] * degrees["pipeline"])
    parts = (degrees["context"], degrees["expert"], degrees["zero_hpz_partition_size"])
    return rest == 0 and all(replicas % part == 0 for part in parts)


def _shrink_degrees(tree: dict[str, Any], config: RunConfig, ranks: int) -> None:
    """The degrees that `ranks` hold; what needs the larger ones goes with them."""
    parallel = tree["parallel"]
    parallel.update(fitting_degrees(config, ranks))
    if parallel["tensor"] == 1:
        parallel["sequence"] = False
    if parallel["pipeline"] == 1:
        parallel["pipeline_schedule"] = "1f1b"
    blocks = parallel["pipeline_partition"]
    if parallel["pipeline"] < config.parallel.pipeline and not isinstance(blocks, str):
        stages = parallel["pipeline"] * (2 if parallel["pipeline_schedule"] == "dualpipev" else 1)
        uneven = len(set(blocks)) > 1 and stages > 1
        kept = [1 + stage % 2 for stage in range(stages)]
        parallel["pipeline_partition"] = kept if uneven else "parameters"


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
    """A short run on `data`; conventions about documents stay.

    Adam divides a gradient by its own size, so that one that is zero but for rounding makes noise;
    epsilon 1e-4 keeps that below the tolerance. torch's AdamW, because others round differently.
    """
    tree["parallel"].update(
        zero_quantized_weights=False,
        zero_quantized_gradients=False,
        zero_persistence_threshold=0,
    )
    parallel = tree["parallel"]
    replicas = ranks // (parallel["tensor"] * parallel["pipeline"] * parallel["context"])
    tree["training"].update(
        steps=VERIFY_STEPS,
        micro_batch_size=_MICRO_BATCH,
        global_batch_size=_MICRO_BATCH * replicas * max(2, 2 * parallel["pipeline"]),
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
    # Tasks are asked of a model that has learned something.
    tree["evaluation"] = {"every_steps": VERIFY_STEPS if data["valid"] else 0, "steps": 2}
    tree["checkpoint"].update(keep_best=0, keep_best_by="loss")
    tree["tracking"].update(tensorboard=False, wandb=False)


def _shrink_precision(tree: dict[str, Any], precision: Precision) -> None:
    """Compute in `precision`; in fp16 with a loss scale that doubles on the way.

    It starts where nothing overflows: on more replicas micro-batches are fewer and gradients of
    one larger, so that a scale at the edge would overflow on one layout and not on another.
    """
    tree["training"]["precision"] = precision
    if precision == "fp16":
        tree["loss_scale"].update(initial_power=10, window=4, minimum=1.0)


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
                vocab_size=VOCABULARY,
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
