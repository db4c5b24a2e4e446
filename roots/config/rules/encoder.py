"""Rules of encoders, of encoder-decoders and of the position encodings that came with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from roots.errors import problem

if TYPE_CHECKING:
    from roots.config.run import RunConfig


def encoder_fields_need_an_encoder(config: RunConfig) -> Iterator[str]:
    """The dimensions of a second stack say nothing about a model of one."""
    model = config.model
    if model.architecture == "encoder_decoder":
        return
    for name, value in (
        ("num_encoder_layers", model.num_encoder_layers),
        ("source_length", model.source_length),
    ):
        if value is not None:
            yield problem(
                f"model.{name}",
                value,
                f"has no effect with model.architecture={model.architecture}",
                f"set model.architecture=encoder_decoder, or model.{name}=null",
            )


def sinusoids_need_an_even_width(config: RunConfig) -> Iterator[str]:
    """Half of a sinusoidal encoding are sines, half cosines."""
    model = config.model
    if model.position == "sinusoidal" and model.hidden_size % 2:
        yield problem(
            "model.hidden_size",
            model.hidden_size,
            "must be even with model.position=sinusoidal",
            f"set it to {model.hidden_size + 1}, or use another position encoding",
        )


def far_distances_need_buckets(config: RunConfig) -> Iterator[str]:
    """Near distances have a bucket each, in a causal stack half of them; the others lie beyond."""
    model = config.model
    if model.position == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        yield problem(
            "model.relative_max_distance",
            model.relative_max_distance,
            f"must be above half of model.relative_buckets={model.relative_buckets}",
            f"set it to {4 * model.relative_buckets}",
        )


def encoders_on_whole_rows(config: RunConfig) -> Iterator[str]:
    """Sequence and context parallelism cut causal rows; an encoder's rows stay whole."""
    architecture, parallel = config.model.architecture, config.parallel
    if architecture == "decoder":
        return
    for name, value, off in (
        ("context", parallel.context, 1),
        ("sequence", parallel.sequence, False),
    ):
        if value != off:
            yield problem(
                f"parallel.{name}",
                value,
                f"must be {str(off).lower()} with model.architecture={architecture}, whose layers "
                "need whole rows",
                f"set parallel.{name}={str(off).lower()} and raise parallel.tensor instead",
            )


def biased_scores_on_whole_rows(config: RunConfig) -> Iterator[str]:
    """A bias per head is added to scores that exist whole, which context parallelism avoids."""
    position, context = config.model.position, config.parallel.context
    if position in ("alibi", "relative") and context > 1:
        yield problem(
            "parallel.context",
            context,
            f"must be 1 with model.position={position}",
            "set model.position=rotary, or parallel.context=1",
        )


def transform_on_whole_rows(config: RunConfig) -> Iterator[str]:
    """The layer before the head puts its output features together, not the tokens."""
    if config.model.head_transform and config.parallel.sequence:
        yield problem(
            "parallel.sequence",
            True,
            "must be false with model.head_transform=true",
            "set parallel.sequence=false, or model.head_transform=false",
        )


def one_stack_options(config: RunConfig) -> Iterator[str]:
    """What only a causal stack that reads nothing besides knows how to do."""
    model = config.model
    if model.architecture == "decoder":
        return
    if model.window is not None:
        yield problem(
            "model.window",
            model.window,
            f"must be null with model.architecture={model.architecture}, whose encoder sees whole "
            "rows",
            "set model.window=null",
        )
    if model.parallel_residual and model.architecture == "encoder_decoder":
        yield problem(
            "model.parallel_residual",
            True,
            "must be false with model.architecture=encoder_decoder, whose decoder reads the "
            "encoder between attention and MLP",
            "set model.parallel_residual=false",
        )


def parallel_branches_have_norms_before(config: RunConfig) -> Iterator[str]:
    """Branches that read the same input have no sum in between for a norm to stand behind."""
    model = config.model
    if model.parallel_residual and model.norm_position == "post":
        yield problem(
            "model.norm_position",
            model.norm_position,
            "must be pre with model.parallel_residual=true",
            "set model.norm_position=pre, or model.parallel_residual=false",
        )


def folded_stages_send_x_alone(config: RunConfig) -> Iterator[str]:
    """Two stages a rank exchange one floating tensor and share one matrix for both ends."""
    parallel, model = config.parallel, config.model
    if parallel.pipeline_schedule == "1f1b" or parallel.pipeline == 1:
        return
    for name, value, plain in (
        ("architecture", model.architecture, model.architecture == "decoder"),
        ("position", model.position, model.position != "relative"),
        ("head_bias", model.head_bias, not (model.head_bias and model.tied_embeddings)),
    ):
        if not plain:
            yield problem(
                "parallel.pipeline_schedule",
                parallel.pipeline_schedule,
                f"cannot run with model.{name}={str(value).lower()}",
                "set parallel.pipeline_schedule=1f1b",
            )


ENCODER_RULES: tuple[Callable[[RunConfig], Iterable[str]], ...] = (
    encoder_fields_need_an_encoder,
    sinusoids_need_an_even_width,
    far_distances_need_buckets,
    encoders_on_whole_rows,
    biased_scores_on_whole_rows,
    transform_on_whole_rows,
    one_stack_options,
    parallel_branches_have_norms_before,
    folded_stages_send_x_alone,
)
