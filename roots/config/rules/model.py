"""Rules of the shape of a model: heads, rotary positions, and what tensor parallelism divides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def heads_divide_hidden(config: RunConfig) -> Iterator[str]:
    """A head has a whole number of dimensions."""
    model = config.model
    if model.head_dim is None and model.hidden_size % model.num_heads:
        yield problem(
            "model.num_heads",
            model.num_heads,
            f"must divide model.hidden_size={model.hidden_size}",
            f"set it to one of {_divisors_near(model.hidden_size, model.num_heads)}, "
            "or set model.head_dim",
        )


def kv_heads_divide_heads(config: RunConfig) -> Iterator[str]:
    """Every key/value head serves the same number of query heads."""
    model = config.model
    if model.num_heads % model.kv_heads:
        yield problem(
            "model.num_kv_heads",
            model.kv_heads,
            f"must divide model.num_heads={model.num_heads}",
            f"set it to one of {_divisors_near(model.num_heads, model.kv_heads)}",
        )


def rotary_needs_even_head(config: RunConfig) -> Iterator[str]:
    """Rotary embeddings turn pairs of dimensions."""
    model = config.model
    if model.position == "rotary" and model.rotary_size < 2:
        yield problem(
            "model.rotary_fraction",
            model.rotary_fraction,
            f"must leave at least 2 of {model.head_size} dimensions to rotate",
            "raise it, or use fewer heads",
        )


def rotary_scaling_is_whole(config: RunConfig) -> Iterator[str]:
    """A stretch has rotary positions, a factor and, by kind, the length it starts from."""
    model, scaling = config.model, config.model.rotary_scaling
    name = "model.rotary_scaling"
    if scaling.kind == "none":
        if scaling.factor != 1.0:
            fix = "set model.rotary_scaling.kind to linear, ntk, yarn or llama3"
            yield problem(f"{name}.factor", scaling.factor, "has no effect with kind=none", fix)
        return
    if model.position != "rotary":
        rule = f"needs model.position=rotary, but it is {model.position}"
        yield problem(f"{name}.kind", scaling.kind, rule, "set model.position=rotary, or kind=none")
    if scaling.kind in ("yarn", "llama3") and scaling.original_length is None:
        rule = f"must be set with {name}.kind={scaling.kind}"
        fix = "set it to the sequence length of the model before the stretch"
        yield problem(f"{name}.original_length", None, rule, fix)
    if scaling.kind == "llama3" and scaling.low_frequency >= scaling.high_frequency:
        rule = f"must be below {name}.high_frequency={scaling.high_frequency:g}"
        yield problem(f"{name}.low_frequency", scaling.low_frequency, rule, "use 1 and 4")


def tensor_divides_model(config: RunConfig) -> Iterator[str]:
    """Tensor parallelism cuts heads, MLP columns and vocabulary evenly."""
    model, tensor = config.model, config.parallel.tensor
    for name, size in (
        ("model.num_heads", model.num_heads),
        ("model.num_kv_heads", model.kv_heads),
        ("model.ffn_hidden_size", model.ffn_size),
    ):
        if size % tensor:
            yield problem(
                "parallel.tensor",
                tensor,
                f"must divide {name}={size}",
                f"set parallel.tensor to one of {_divisors_near(size, tensor)}, or change {name}",
            )
    if model.padded_vocab_size % tensor:
        yield problem(
            "parallel.tensor",
            tensor,
            f"must divide the padded vocabulary of {model.padded_vocab_size}",
            f"set model.vocab_multiple to a multiple of {tensor}",
        )


def _divisors_near(number: int, wish: int) -> str:
    """List the divisors of `number` around `wish`, for the fix of a message."""
    # Nobody wants more heads or ranks than that, and a number may be absurd.
    most = min(number, 1 << 16)
    divisors = [value for value in range(1, most + 1) if number % value == 0]
    below = [value for value in divisors if value <= wish][-2:]
    above = [value for value in divisors if value > wish][:2]
    return ", ".join(str(value) for value in [*below, *above])


MODEL_RULES = (
    heads_divide_hidden,
    kv_heads_divide_heads,
    rotary_needs_even_head,
    rotary_scaling_is_whole,
    tensor_divides_model,
)
