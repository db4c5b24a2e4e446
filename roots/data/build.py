"""The data of a run, from its config: the one entry for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roots.config.data import DataConfig, DataSource
from roots.config.run import BatchPlan, RunConfig
from roots.data.batch import DocumentRules
from roots.data.blend import Blend, Source
from roots.data.gpt import split_documents
from roots.data.indexed import IndexedDataset
from roots.data.loader import StepReader, TrainSource, ValidSource
from roots.errors import RootsError, problem
from roots.tokenizer.tokenizer import load_tokenizer

_TRAIN, _VALID = 0, 1


@dataclass(frozen=True)
class DataSources:
    """What a run reads. `valid` is None where the config never evaluates."""

    train: TrainSource
    valid: ValidSource | None


def build_data(
    config: RunConfig, batch_plan: BatchPlan, data_rank: int, *, needs_data: bool = True
) -> DataSources:
    """Open the datasets of `config` for one data-parallel rank.

    Every rank may call this at once: the first builds and caches the sample indices, the others
    wait for that. Where `needs_data` is false, the batches are empty lists and no index is built.
    Raises RootsError with every dataset that cannot be opened, one line each.
    """
    if not config.data.train:
        fix = "add `data.train=PREFIX`, made by `roots preprocess`"
        raise RootsError(problem("data.train", None, "names no data to train on", fix))
    evaluates = config.evaluation.every_steps > 0
    train_set = _open(config.data.train, "data.train")
    valid_set = _open(config.data.valid, "data.valid") if evaluates else []
    _check_tokenizers([*train_set, *valid_set], config.data.tokenizer)
    train, valid = _sources(config, train_set, valid_set)

    def reader(sources: Sequence[Source], num_steps: int) -> StepReader:
        num_samples = num_steps * batch_plan.global_batch_size
        return StepReader(
            _blend(config, sources, num_samples) if needs_data else None,
            batch_plan,
            data_rank,
            num_steps=num_steps,
            rules=document_rules(config.data),
            seed=config.training.seed,
        )

    return DataSources(
        TrainSource(reader(train, config.training.steps), config.data.num_workers),
        ValidSource(reader(valid, config.evaluation.steps)) if evaluates else None,
    )


def document_rules(data: DataConfig) -> DocumentRules:
    """Return what the config says about document boundaries."""
    return DocumentRules(
        separate_documents=data.separate_documents,
        reset_positions=data.reset_positions,
        mask_document_end=data.mask_document_end,
    )


def _blend(config: RunConfig, sources: Sequence[Source], num_samples: int) -> Blend:
    return Blend(
        sources,
        sequence_length=config.model.sequence_length,
        num_samples=num_samples,
        seed=config.training.seed,
        vocab_size=config.model.vocab_size,
        cache_directory=config.data.cache_directory,
    )


def _open(sources: Sequence[DataSource], field: str) -> list[Source]:
    """Open every dataset whole. Raises RootsError with the problems of all of them."""
    opened: list[Source] = []
    lines: list[str] = []
    for number, source in enumerate(sources):
        try:
            indexed = IndexedDataset(source.prefix)
            opened.append(Source(indexed, range(indexed.num_documents), source.weight))
        except RootsError as error:
            lines.extend(f"{field}[{number}].prefix: {line}" for line in error.lines)
    if lines:
        raise RootsError(*lines)
    return opened


def _sources(
    config: RunConfig, train: list[Source], valid: list[Source]
) -> tuple[list[Source], list[Source]]:
    """Return what to train on and what to evaluate on, split by document where they are one."""
    if config.data.valid:
        return train, valid
    evaluates = config.evaluation.every_steps > 0
    parts = [_parts(source, config.data.split) for source in train]
    for part in (_TRAIN, _VALID)[: 1 + evaluates]:
        for source, ranges in zip(train, parts, strict=True):
            if not ranges[part]:
                count = source.indexed.num_documents
                name = ("train", "valid")[part]
                rule = f"leaves no document of {source.indexed.prefix} ({count}) for {name}"
                fix = "change the split, or give data.valid a dataset of its own"
                shown = ",".join(f"{weight:g}" for weight in config.data.split)
                raise RootsError(problem("data.split", shown, rule, fix))
    return (
        [Source(s.indexed, r[_TRAIN], s.weight) for s, r in zip(train, parts, strict=True)],
        [Source(s.indexed, r[_VALID], s.weight) for s, r in zip(train, parts, strict=True)],
    )


def _parts(source: Source, split: tuple[float, float, float]) -> tuple[range, ...]:
    return split_documents(source.indexed.num_documents, split)


def _check_tokenizers(sources: Sequence[Source], configured: str | None) -> None:
    """Refuse data of different tokenizers, or of another than `data.tokenizer`.

    As far as the side files tell: a dataset without one passes.
    """
    origin, expected = "", ""
    if configured is not None:
        origin, expected = f"data.tokenizer {configured}", load_tokenizer(configured).fingerprint
    for source in sources:
        description = source.indexed.description
        if description is None:
            continue
        if not expected:
            origin, expected = source.indexed.prefix, description.tokenizer
        elif description.tokenizer != expected:
            rule = f"was made with another tokenizer than {origin}"
            fix = "preprocess the text with the same one"
            raise RootsError(problem(source.indexed.prefix, None, rule, fix))
