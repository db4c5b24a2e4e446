"""What a run says of itself before its first step and after its last, a line for each subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from roots.config.batch import BatchPlan
from roots.config.run import RunConfig
from roots.data.blend import Source
from roots.data.build import DataSources
from roots.parallel.topology import Topology
from roots.planner.parameters import count_parameters


def opening_lines(
    config: RunConfig, plan: BatchPlan, topology: Topology, data: DataSources, device: str
) -> Iterator[str]:
    """Model, layout, batch, data and folder of a run that is about to begin."""
    model, training = config.model, config.training
    counts = count_parameters(model)
    active = "" if counts.idle == 0 else f", {counts.active:,} of them for a token"
    yield f"model    {model.architecture}, {counts.total:,} parameters{active}"
    yield f"layout   {describe_layout(config, topology)}, {training.precision} on {device}"
    yield (
        f"batch    {plan.global_batch_size:,} samples = {config.tokens_per_step:,} tokens a step: "
        f"{plan.micro_batch_size} x accumulation {plan.accumulation} x data {plan.data_parallel}"
    )
    yield from data_lines(config, data)
    yield f"folder   {config.run_directory}"


def describe_layout(config: RunConfig, topology: Topology) -> str:
    """The number of ranks, and every axis that has more than one."""
    parallel = config.parallel
    schedule = f" ({parallel.pipeline_schedule})" if topology.pipeline > 1 else ""
    sizes = {
        "tensor": topology.tensor,
        "context": topology.context,
        f"pipeline{schedule}": topology.pipeline,
        "data": topology.data,
        "of it expert": topology.expert,
    }
    axes = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    ranks = f"{topology.world_size} rank{'s' if topology.world_size > 1 else ''}"
    return f"{ranks}{f' = {axes}' if axes else ''}, ZeRO {parallel.zero_stage}"


def data_lines(config: RunConfig, data: DataSources) -> Iterator[str]:
    """Every dataset with its size and how often the run reads it."""
    steps, phase = config.training.steps, config.data.phase
    steps, since = (data.train.num_steps, f" of phase {phase}") if phase else (steps, "")
    samples = steps * config.training.global_batch_size
    whole = sum(source.weight for source in data.train_sets)
    for source in data.train_sets:
        share = samples * source.weight / whole
        if config.objective == "pairs":
            epochs = share / len(source.documents)
        else:
            epochs = share * config.model.sequence_length / max(1, tokens_of(source))
        yield f"train    {_size(source)}, read {epochs:.2f} times in {steps:,} steps{since}"
    for source in data.valid_sets:
        yield f"valid    {_size(source)}"


def tokens_of(source: Source) -> int:
    """Tokens of the documents of a dataset that are used."""
    if not source.documents:
        return 0
    first, last = (source.indexed.document_span(source.documents[place]) for place in (0, -1))
    return last[1] - first[0]


def closing_lines(config: RunConfig) -> Sequence[str]:
    """Where everything lies, and what people do next."""
    folder = config.run_directory
    seq2seq = config.model.architecture == "encoder_decoder"
    prompt = '--source "..."' if seq2seq else '--prompt "..."'
    lines = [f"done     {folder}: checkpoints/, metrics.jsonl, config.yaml"]
    if config.model.architecture != "encoder":
        lines.append(f"next     roots generate {folder} {prompt}")
    lines.append(f"         roots export {folder} --to FOLDER")
    return lines


def _size(source: Source) -> str:
    return (
        f"{source.indexed.prefix}: {tokens_of(source):,} tokens in "
        f"{len(source.documents):,} documents"
    )
